// select_topk and select_topk_global on the device; see select_topk.cu.
#pragma once

#include "cuda/radix_select.h"

namespace evoprune::cuda {

struct SelectTopkArgs {
  RadixSelectArgs list;  // scores and masks of all tensors
  DType dtype;           // of all scores
};

RadixPlan select_topk_plan(const SelectTopkArgs& args, const DeviceLimits& limits);
void select_topk(const SelectTopkArgs& args, const RadixPlan& plan, void* scratch,
                 cudaStream_t stream);

}  // namespace evoprune::cuda
