// The tensor lists of an optimizer-step op: their checks, and what makes them fit for a kernel.
//
//   layout of the tensors of one index                                what the kernel gets
//   all contiguous, or the same strides over dense memory             their own memory
//   anything else (views with gaps, a gradient of other strides)      contiguous copies, written
//   back
//
// All checks and copies come before the first write, so an error leaves everything as it was.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "ops/check.h"

namespace evoprune::binding {

using TensorList = std::vector<Tensor>;

struct StepInputs {
  TensorList params, grads, moments, squares, largest_squares, importances, masks, steps;
  std::optional<Tensor> grad_scale, found_inf;
  const char* moments_name;  // for messages: exp_avgs or momentum_buffers
  std::string rule;
  double alpha;
  bool maximize;
};

// One index of the lists, ready for the kernel.
struct PreparedStep {
  StepTensor tensor;
  DType param_dtype, state_dtype;
};
struct StepCopy {
  Tensor original, copy;
  bool written;
};
struct PreparedSteps {
  std::vector<PreparedStep> items;
  std::vector<StepCopy> copies;
};

StepRule step_rule(const std::string& rule);
void check_step_inputs(const StepInputs& in);
bool step_is_skipped(const StepInputs& in);
bool share_memory(const TensorList& tensors);
StepInputs only(const StepInputs& in, size_t i);  // index i alone
PreparedSteps prepare_steps(const StepInputs& in);
double read_number(const Tensor& t, const char* what);  // of a one-element tensor
double advance_step(const Tensor& step);                // adds one, returns the new number

// Runs the kernel once for each pair of dtypes in the list, over chunks of all its tensors at once.
template <typename Args>
void launch_steps(void (*kernel)(const Args&, int64_t, int64_t), Args args, const StepInputs& in,
                  const PreparedSteps& prepared) {
  args.list.rule = step_rule(in.rule);
  args.list.average = importance::Average(in.alpha);
  args.list.sign = in.maximize ? -1.0f : 1.0f;
  args.list.scaled = in.grad_scale.has_value();
  args.list.grad_scale =
      args.list.scaled ? static_cast<float>(read_number(*in.grad_scale, "grad_scale")) : 1.0f;
  for (const auto& [param, state] :
       {std::pair(DType::f32, DType::f32), std::pair(DType::bf16, DType::f32),
        std::pair(DType::bf16, DType::bf16)}) {
    std::vector<StepTensor> tensors;
    int64_t chunks = 0, elements = 0;
    for (const PreparedStep& item : prepared.items) {
      if (item.param_dtype != param || item.state_dtype != state || item.tensor.numel == 0)
        continue;
      tensors.push_back(item.tensor);
      tensors.back().first_chunk = chunks;
      chunks += (item.tensor.numel + kStepChunk - 1) / kStepChunk;
      elements += item.tensor.numel;
    }
    args.list.tensors = tensors.data();
    args.list.count = static_cast<int64_t>(tensors.size());
    args.list.param_dtype = param;
    args.list.state_dtype = state;
    const int64_t worth_a_thread = 2 * kStepChunk;
    run(kernel, args, chunks, elements <= worth_a_thread ? chunks : 2);
  }
  for (const StepCopy& c : prepared.copies) {
    Tensor target = c.original;
    if (c.written) torch::stable::copy_(target, c.copy);
  }
}

}  // namespace evoprune::binding
