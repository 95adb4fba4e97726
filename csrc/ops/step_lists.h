// The tensor lists of an optimizer-step op, on any device: their checks, and which of them fit for
// a kernel as they lie in memory. What is done with them is in ops/step_inputs.h (CPU) and
// ops_cuda/step_inputs.h.
//
//   layout of the tensors of one index                                what the kernel gets
//   all contiguous, or the same strides over dense memory             their own memory
//   anything else (views with gaps, other strides of a gradient)      contiguous copies, which are
//                                                                     copied back where written
//
// All checks and copies come before the first write, so an error leaves everything as it was.
#pragma once

#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "core/step_rule.h"
#include "ops/tensor_layout.h"

namespace evoprune::binding {

using TensorList = std::vector<Tensor>;

struct StepOptions {
  std::optional<Tensor> grad_scale, found_inf;
  std::string rule;
  double alpha;
  bool maximize;
  std::string point;  // pre or post; empty: the usual one of the rule
  double sparse_decay;
};

struct StepInputs {
  TensorList params, grads, moments, squares, largest_squares, importances, masks, steps;
  StepOptions options;
  const char* moments_name;  // for messages: exp_avgs or momentum_buffers
};

struct StepRole {  // one list of an op, and what happens to it
  const char* name;
  const TensorList& list;
  bool written;
};

struct StepCopy {
  Tensor original, copy;
  bool written;
};

inline std::vector<StepRole> step_roles(const StepInputs& in) {
  return {{"params", in.params, true},
          {"grads", in.grads, in.options.grad_scale.has_value()},
          {in.moments_name, in.moments, true},
          {"exp_avg_sqs", in.squares, true},
          {"max_exp_avg_sqs", in.largest_squares, true},
          {"importances", in.importances, true},
          {"masks", in.masks, false}};
}

inline StepRule step_rule(const std::string& rule) {
  if (rule == "evolution") return StepRule::evolution;
  if (rule == "evolution_abs") return StepRule::evolution_abs;
  if (rule == "taylor") return StepRule::taylor;
  if (rule == "movement") return StepRule::movement;
  STD_TORCH_CHECK(
      rule == "none" || rule == "magnitude",
      "expected rule none, magnitude, evolution, evolution_abs, taylor or movement, got ", rule);
  return StepRule::none;
}

inline StepPoint step_point(const StepOptions& options) {
  const StepRule rule = step_rule(options.rule);
  const bool has_gradient = rule == StepRule::taylor || rule == StepRule::movement;
  STD_TORCH_CHECK(options.point.empty() || options.point == "pre" || options.point == "post",
                  "expected point pre or post, or none, got ", options.point);
  if (options.point == "pre" || (options.point.empty() && has_gradient)) return StepPoint::before;
  return has_gradient ? StepPoint::updated : StepPoint::stored;
}

inline void check_step_dtype(const StepRole& role, size_t i, ScalarType expected,
                             ScalarType or_else) {
  const ScalarType actual = role.list[i].scalar_type();
  if (actual == expected || actual == or_else) return;
  using torch::headeronly::toString;
  const std::string alternative =
      expected == or_else ? "" : std::string(" or ") + toString(or_else);
  STD_TORCH_CHECK(false, role.name, "[", i, "] has dtype ", toString(actual), ", expected ",
                  toString(expected), alternative);
}

inline void check_step_tensor(const StepRole& role, size_t i, const StepInputs& in) {
  const Tensor &t = role.list[i], &param = in.params[i];
  STD_TORCH_CHECK(same_shape(t, param), role.name, "[", i, "] has shape ", shape_of(t),
                  ", its parameter ", shape_of(param));
  STD_TORCH_CHECK(same_device(t, in.params[0]), role.name, "[", i, "] is on ", device_of(t),
                  ", the first parameter on ", device_of(in.params[0]));
  STD_TORCH_CHECK(!role.written || t.is_contiguous() || !overlaps_itself(t), role.name, "[", i,
                  "] of shape ", shape_of(t),
                  " is written, and several of its elements share memory (an expanded tensor?)");
}

inline void check_step_dtypes(const StepInputs& in, const std::vector<StepRole>& all, size_t i) {
  const ScalarType dtype = in.params[i].scalar_type();
  check_step_dtype(all[0], i, ScalarType::Float, ScalarType::BFloat16);
  check_step_dtype(all[1], i, dtype, dtype);
  if (!in.moments.empty()) check_step_dtype(all[2], i, ScalarType::Float, dtype);
  for (size_t r = 3; r <= 4; ++r) {  // second moments have the dtype of the first
    const ScalarType state = in.moments.empty() ? dtype : in.moments[i].scalar_type();
    if (!all[r].list.empty()) check_step_dtype(all[r], i, state, state);
  }
  if (!in.importances.empty()) check_step_dtype(all[5], i, ScalarType::Float, ScalarType::Float);
  if (!in.masks.empty()) check_step_dtype(all[6], i, ScalarType::Bool, ScalarType::Bool);
}

inline void check_sparse_decay(const StepInputs& in) {
  const double decay = in.options.sparse_decay;
  STD_TORCH_CHECK(decay >= 0 && decay < std::numeric_limits<double>::infinity(),
                  "expected sparse_decay >= 0 and finite, got ", decay);
  STD_TORCH_CHECK(decay == 0 || in.masks.size() == in.params.size(), "sparse_decay=", decay,
                  " needs ", in.params.size(), " masks, one a parameter, got ", in.masks.size());
}

// Steps lie on the CPU or with the first parameter.
inline void check_step_inputs(const StepInputs& in) {
  const StepRule rule = step_rule(in.options.rule);
  step_point(in.options);
  check_sparse_decay(in);
  const size_t count = in.params.size();
  STD_TORCH_CHECK(in.options.alpha >= 0 && in.options.alpha <= 1, "expected 0 <= alpha <= 1, got ",
                  in.options.alpha);
  STD_TORCH_CHECK(rule == StepRule::none || in.importances.size() == count, "rule ",
                  in.options.rule, " needs ", count, " importances, one a parameter, got ",
                  in.importances.size());
  STD_TORCH_CHECK(in.grads.size() == count, "expected ", count, " grads, got ", in.grads.size());
  STD_TORCH_CHECK(in.steps.size() == count, "expected ", count, " steps, got ", in.steps.size());
  const std::vector<StepRole> all = step_roles(in);
  for (const StepRole& role : all) {
    STD_TORCH_CHECK(role.list.empty() || role.list.size() == count, "expected ", count, " ",
                    role.name, ", one a parameter, or none, got ", role.list.size());
    for (size_t i = 0; i < role.list.size(); ++i) check_step_tensor(role, i, in);
  }
  for (size_t i = 0; i < count; ++i) {
    check_step_dtypes(in, all, i);
    const Tensor& step = in.steps[i];
    STD_TORCH_CHECK(step.numel() == 1 && step.scalar_type() == ScalarType::Float, "expected steps[",
                    i, "] of 1 element and dtype Float, got ", step.numel(), " of ",
                    torch::headeronly::toString(step.scalar_type()));
    STD_TORCH_CHECK(step.is_cpu() || same_device(step, in.params[0]), "steps[", i, "] is on ",
                    device_of(step), ", the first parameter on ", device_of(in.params[0]));
  }
}

inline void check_moments(const StepInputs& in, bool amsgrad) {  // of AdamW
  STD_TORCH_CHECK(in.moments.size() == in.params.size() && in.squares.size() == in.params.size(),
                  "expected ", in.params.size(), " exp_avgs and exp_avg_sqs, got ",
                  in.moments.size(), " and ", in.squares.size());
  STD_TORCH_CHECK(!amsgrad || in.largest_squares.size() == in.params.size(), "amsgrad needs ",
                  in.params.size(), " max_exp_avg_sqs, got ", in.largest_squares.size());
}

inline void check_buffers(const StepInputs& in, double momentum) {  // of SGD
  STD_TORCH_CHECK(momentum == 0 || in.moments.size() == in.params.size(), "momentum=", momentum,
                  " needs ", in.params.size(), " momentum_buffers, got ", in.moments.size());
}

inline bool share_memory(const TensorList& tensors) {
  std::vector<std::pair<const char*, const char*>> ranges;
  for (const Tensor& t : tensors) {
    int64_t last = 0;
    for (const auto& [stride, size] : dims_by_stride(t)) last += stride * (size - 1);
    const char* begin = static_cast<const char*>(t.const_data_ptr());
    if (t.numel() > 0)
      ranges.emplace_back(begin, begin + (last + 1) * static_cast<int64_t>(t.element_size()));
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i].first < ranges[i - 1].second) return true;
  return false;
}

inline StepInputs only(const StepInputs& in, size_t i) {  // index i alone
  StepInputs one = in;
  for (TensorList* list : {&one.params, &one.grads, &one.moments, &one.squares,
                           &one.largest_squares, &one.importances, &one.masks, &one.steps})
    if (!list->empty()) *list = {(*list)[i]};
  return one;
}

// The tensors of index i for a kernel: those of the lists, or contiguous copies.
class StepLayout {
 public:
  StepLayout(const StepInputs& in, size_t i, std::vector<StepCopy>& copies, bool any_strides = true)
      : i_(i), copies_(copies) {
    const Tensor& param = in.params[i];
    bool contiguous = true, alike = true;
    for (const StepRole& role : step_roles(in)) {
      if (role.list.empty()) continue;
      contiguous = contiguous && role.list[i].is_contiguous();
      alike = alike && same_layout(role.list[i], param);
    }
    in_place_ = contiguous || (any_strides && alike && is_dense(param));
  }

  // Valid until the next call; null where the list is not given.
  const Tensor* operator()(const TensorList& list, bool written) {
    if (list.empty()) return nullptr;
    const Tensor& t = list[i_];
    if (in_place_ || t.is_contiguous()) return &t;
    copies_.push_back({t, torch::stable::contiguous(t), written});
    return &copies_.back().copy;
  }

 private:
  size_t i_;
  std::vector<StepCopy>& copies_;
  bool in_place_;
};

inline void write_back(const std::vector<StepCopy>& copies) {  // to what they are copies of
  for (const StepCopy& c : copies) {
    Tensor target = c.original;
    if (c.written) torch::stable::copy_(target, c.copy);
  }
}

}  // namespace evoprune::binding
