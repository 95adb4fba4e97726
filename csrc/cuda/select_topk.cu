// select_topk, select_topk_global: the highest scores of a tensor, or of a list of tensors, are kept.
//
//   mask[i] = rank of scores[i] among all entries of all tensors < keep
//
//   fp32        bits of 32: 3 passes of counting and one that writes the mask, 17 bytes an entry
//   f16, bf16   bits of 16: 2 passes and one, 7 bytes an entry; the two differ in +inf only
//
// Layout, work of a block, ties: radix_select.cuh. Bound by memory. Exact and deterministic.
// Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
// NeurIPS 2015; Alabi et al., "Fast k-Selection Algorithms for Graphics Processing Units", JEA 2012.
#include "cuda/radix_select.cuh"
#include "cuda/select_topk.h"

namespace evoprune::cuda {

RadixPlan select_topk_plan(const SelectTopkArgs& args, const DeviceLimits& limits) {
  return args.dtype == DType::f32 ? radix::plan<uint32_t>(args.list, limits)
                                  : radix::plan<uint16_t>(args.list, limits);
}

void select_topk(const SelectTopkArgs& args, const RadixPlan& plan, void* scratch,
                 cudaStream_t stream) {
  if (args.dtype == DType::f32)
    return radix::select<uint32_t>(args.list, plan, select::kInfinityF32, scratch, stream);
  const uint16_t infinity = args.dtype == DType::f16 ? select::kInfinityF16 : select::kInfinityBf16;
  radix::select<uint16_t>(args.list, plan, infinity, scratch, stream);
}

}  // namespace evoprune::cuda
