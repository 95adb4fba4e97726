// What makes the lists of an optimizer-step op (ops/step_lists.h) fit for the CUDA kernels.
//
//   on the device   read there, not by the host: steps (also increased), lr, grad_scale, found_inf
//   on the CPU      lr, grad_scale and found_inf are passed by value; steps are increased by the
//                   host, which then has to read found_inf from the device (it waits for it)
//
// torch's fused AdamW keeps its steps on the device and reads them there; steps on the CPU are what
// a state that was made without `fused` or `capturable` has.
#pragma once

#include <vector>

#include "cuda/step.h"
#include "ops/step_lists.h"
#include "ops_cuda/check.h"

namespace evoprune::binding_cuda {

using binding::StepInputs;
using binding::StepOptions;
using binding::TensorList;
using cuda::StepItem;
using cuda::StepNumber;

#if EVOPRUNE_SIMULATED
extern "C" int evoprune_sim_on_host(const void* data);
inline bool on_host(const Tensor& t) {
  return evoprune_sim_on_host(t.const_data_ptr());
}
#else
inline bool on_host(const Tensor& t) {
  return t.is_cpu();
}
#endif

inline double host_value(const Tensor& t) {
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  const Tensor number =
      torch::stable::to(torch::stable::to(t, cpu), torch::headeronly::ScalarType::Double);
  return *static_cast<const double*>(number.const_data_ptr());
}

// A one-element tensor as a kernel takes it. `kept` holds what it points to.
inline StepNumber number_of(const Tensor& t, const Tensor& param, const char* what,
                            TensorList& kept) {
  STD_TORCH_CHECK(t.numel() == 1, "expected ", what, " of 1 element, got shape ",
                  binding::shape_of(t));
  StepNumber number;
  if (on_host(t)) {
    number.value = host_value(t);
    return number;
  }
  STD_TORCH_CHECK(binding::same_device(t, param), what, " is on ", binding::device_of(t),
                  ", the first parameter on ", binding::device_of(param));
  const bool is_float = t.scalar_type() == ScalarType::Float;
  kept.push_back(is_float ? t : torch::stable::to(t, ScalarType::Double));
  number.device = input(kept.back());
  number.is_double = !is_float;
  return number;
}

inline DType step_dtype(const Tensor& t) {
  return t.scalar_type() == ScalarType::Float ? DType::f32 : DType::bf16;
}

struct PreparedSteps {
  std::vector<StepItem> items;
  std::vector<binding::StepCopy> copies;
};

// With a seed only contiguous tensors are taken as they lie: the random bits follow the index of an
// element, not its place in memory.
inline PreparedSteps prepare_steps(const StepInputs& in, bool seeded) {
  PreparedSteps out;
  for (size_t i = 0; i < in.params.size(); ++i) {
    binding::StepLayout layout(in, i, out.copies, !seeded);
    bool vectors = true;
    const auto memory = [&](const TensorList& list, bool written) -> void* {
      const Tensor* t = layout(list, written);
      if (t == nullptr) return nullptr;
      void* data = written ? in_out(*t) : const_cast<void*>(input(*t));
      const auto bytes = static_cast<uintptr_t>(4 * t->element_size());
      vectors = vectors && reinterpret_cast<uintptr_t>(data) % bytes == 0;
      return data;
    };
    StepItem item{};
    cuda::StepTensor& t = item.tensor;
    t.param = memory(in.params, true);
    t.grad = memory(in.grads, in.options.grad_scale.has_value());
    t.moment = memory(in.moments, true);
    t.square = memory(in.squares, true);
    t.largest_square = memory(in.largest_squares, true);
    t.importance = static_cast<float*>(memory(in.importances, true));
    t.mask = static_cast<const uint8_t*>(memory(in.masks, false));
    t.numel = in.params[i].numel();
    t.index = static_cast<uint32_t>(i);
    t.vectors = vectors;
    item.param_dtype = step_dtype(in.params[i]);
    item.state_dtype = in.moments.empty() ? item.param_dtype : step_dtype(in.moments[i]);
    const Tensor& step = in.steps[i];
    if (on_host(step))
      item.step_value = *static_cast<float*>(step.data_ptr()) += 1;
    else
      item.step = in_out<float>(step);
    out.items.push_back(item);
  }
  return out;
}

inline bool skipped_on_host(const StepInputs& in) {
  if (!in.options.found_inf) return false;
  for (const Tensor& step : in.steps)
    if (on_host(step)) return host_value(*in.options.found_inf) != 0;
  return false;
}

inline bool steps_repeat(const StepInputs& in) {
  std::vector<const void*> steps;
  for (const Tensor& step : in.steps) steps.push_back(step.const_data_ptr());
  std::sort(steps.begin(), steps.end());
  return std::adjacent_find(steps.begin(), steps.end()) != steps.end();
}

// Calls step(shared, items, stream) for checked lists: once, or for one parameter after the other
// where parameters or steps share memory. `lr` is a tensor or a number.
template <typename Step>
void run_steps(const StepInputs& in, const std::optional<Tensor>& lr, double lr_value,
               const std::optional<int64_t>& seed, const Step& step) {
  if (in.params.empty()) return;
  const Tensor& first = in.params[0];
#if !EVOPRUNE_SIMULATED
  STD_TORCH_CHECK(!first.is_cpu(), "expected params[0] on a CUDA device, got the CPU");
#endif
  Call call(first, {});
  TensorList kept;
  cuda::StepShared shared{};
  const auto number = [&](const std::optional<Tensor>& t, double otherwise, const char* what) {
    return t ? number_of(*t, first, what, kept) : StepNumber{nullptr, false, otherwise};
  };
  shared.lr = number(lr, lr_value, "lr");
  shared.grad_scale = number(in.options.grad_scale, 1, "grad_scale");
  shared.found_inf = number(in.options.found_inf, 0, "found_inf");
  shared.scaled = in.options.grad_scale.has_value();
  shared.average = importance::Average(in.options.alpha);
  shared.rule = binding::step_rule(in.options.rule);
  shared.point = binding::step_point(in.options);
  shared.sparse_decay = static_cast<float>(in.options.sparse_decay);
  shared.decays_masked = in.options.sparse_decay != 0;
  shared.sign = in.options.maximize ? -1.0f : 1.0f;
  shared.seeded = seed.has_value();
  shared.seed = static_cast<uint64_t>(seed.value_or(0));
  if (skipped_on_host(in)) return;
  const auto count = static_cast<int64_t>(in.params.size());
  constexpr int64_t kFloats = sizeof(cuda::StepFactors) / sizeof(float);
  const Tensor factors = empty_like(first, {count, kFloats}, ScalarType::Float);
  shared.factors = static_cast<cuda::StepFactors*>(output(factors));
  const auto run = [&](const StepInputs& part, size_t offset) {
    PreparedSteps prepared = prepare_steps(part, shared.seeded);
    for (StepItem& item : prepared.items) item.tensor.index += static_cast<uint32_t>(offset);
    step(shared, prepared.items, call.stream());
    binding::write_back(prepared.copies);
  };
  if (!binding::share_memory(in.params) && !steps_repeat(in)) return run(in, 0);
  for (size_t i = 0; i < in.params.size(); ++i) run(binding::only(in, i), i);
}

}  // namespace evoprune::binding_cuda
