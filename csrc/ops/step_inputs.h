// What makes the lists of an optimizer-step op (ops/step_lists.h) fit for the CPU kernels.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "cpu/step_entry.h"
#include "ops/step_lists.h"

namespace evoprune::binding {

using StepEntries = std::span<StepEntry>;
struct PreparedSteps {
  std::vector<StepEntry> entries;
  std::vector<StepCopy> copies;
};

bool step_is_skipped(const StepOptions& options);
PreparedSteps prepare_steps(const StepInputs& in);
void check_no_seed(const std::optional<int64_t>& seed);
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
    write_back(prepared.copies);
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
// A step with a learning rate of 0 advances no importance.
template <typename Args>
void launch_steps(void (*kernel)(const Args&, int64_t, int64_t), Args args,
                  const StepOptions& options, double lr, double grad_scale,
                  const StepEntries entries) {
  args.list.rule = lr == 0 ? StepRule::none : step_rule(options.rule);
  args.list.point = step_point(options);
  args.list.sparse_decay = static_cast<float>(options.sparse_decay);
  args.list.decays_masked = options.sparse_decay != 0;
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
