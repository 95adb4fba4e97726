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
#include <span>
#include <utility>
#include <vector>

#include "cpu/step_entry.h"
#include "ops/check.h"

namespace evoprune::binding {

using TensorList = std::vector<Tensor>;

struct StepOptions {
  std::optional<Tensor> grad_scale, found_inf;
  std::string rule;
  double alpha;
  bool maximize;
};

struct StepInputs {
  TensorList params, grads, moments, squares, largest_squares, importances, masks, steps;
  StepOptions options;
  const char* moments_name;  // for messages: exp_avgs or momentum_buffers
};

using StepEntries = std::span<StepEntry>;
struct StepCopy {
  Tensor original, copy;
  bool written;
};
struct PreparedSteps {
  std::vector<StepEntry> entries;
  std::vector<StepCopy> copies;
};

StepRule step_rule(const std::string& rule);
void check_step_inputs(const StepInputs& in);
bool step_is_skipped(const StepOptions& options);
bool share_memory(const TensorList& tensors);
StepInputs only(const StepInputs& in, size_t i);  // index i alone
PreparedSteps prepare_steps(const StepInputs& in);
void write_back(const PreparedSteps& prepared);         // copies, to what they are copies of
double read_number(const Tensor& t, const char* what);  // of a one-element tensor

// Calls step(entries, grad_scale): once, or for one parameter after the other where they share
// memory; never where found_inf says so. Everything is checked before the first call.
template <typename Step>
void run_steps(const StepInputs& in, const Step& step) {
  if (step_is_skipped(in.options)) return;
  const auto& scale = in.options.grad_scale;
  const double grad_scale = scale ? read_number(*scale, "grad_scale") : 1.0;
  const auto run = [&](const StepInputs& part) {
    PreparedSteps prepared = prepare_steps(part);
    step(StepEntries(prepared.entries), grad_scale);
    write_back(prepared);
  };
  if (!share_memory(in.params)) return run(in);
  for (size_t i = 0; i < in.params.size(); ++i) run(only(in, i));
}

// The same for entries that `_native` collected: plain tensors that share nothing.
template <typename Step>
void run_entries(int64_t address, int64_t count, const StepOptions& options, const Step& step) {
  if (step_is_skipped(options)) return;
  const auto& scale = options.grad_scale;
  const double grad_scale = scale ? read_number(*scale, "grad_scale") : 1.0;
  step(StepEntries(reinterpret_cast<StepEntry*>(address), static_cast<size_t>(count)), grad_scale);
}

// Runs the kernel once for each pair of dtypes in the list, over chunks of all its tensors at once.
template <typename Args>
void launch_steps(void (*kernel)(const Args&, int64_t, int64_t), Args args,
                  const StepOptions& options, double grad_scale, const StepEntries entries) {
  args.list.rule = step_rule(options.rule);
  args.list.average = importance::Average(options.alpha);
  args.list.sign = options.maximize ? -1.0f : 1.0f;
  args.list.scaled = options.grad_scale.has_value();
  args.list.grad_scale = static_cast<float>(grad_scale);
  for (const auto& [param, state] :
       {std::pair(DType::f32, DType::f32), std::pair(DType::bf16, DType::f32),
        std::pair(DType::bf16, DType::bf16)}) {
    std::vector<StepTensor> tensors;
    int64_t chunks = 0, elements = 0;
    for (const StepEntry& item : entries) {
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
}

}  // namespace evoprune::binding
