// Checks and layouts of the optimizer-step ops; see step_inputs.h.
#include "ops/step_inputs.h"

namespace evoprune::binding {

namespace {

using torch::headeronly::toString;

struct Role {  // one list of an op, and what happens to it
  const char* name;
  const TensorList& list;
  bool written;
};

std::vector<Role> roles(const StepInputs& in) {
  return {{"params", in.params, true},
          {"grads", in.grads, in.options.grad_scale.has_value()},
          {in.moments_name, in.moments, true},
          {"exp_avg_sqs", in.squares, true},
          {"max_exp_avg_sqs", in.largest_squares, true},
          {"importances", in.importances, true},
          {"masks", in.masks, false}};
}

std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) text += (d ? ", " : "") + std::to_string(t.size(d));
  return text + "]";
}

bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != b.size(d)) return false;
  return true;
}

bool same_layout(const Tensor& a, const Tensor& b) {  // of two tensors of one shape
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

using Dims = std::vector<std::pair<int64_t, int64_t>>;

Dims dims_by_stride(const Tensor& t) {  // (stride, size) where size > 1, smallest stride first
  Dims dims;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1) dims.emplace_back(t.stride(d), t.size(d));
  std::sort(dims.begin(), dims.end());
  return dims;
}

bool is_dense(const Tensor& t) {  // the elements fill one range of memory, each once
  int64_t expected = 1;
  for (const auto& [stride, size] : dims_by_stride(t)) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

bool overlaps_itself(const Tensor& t) {
  int64_t covered = 0;  // the largest offset that the smaller strides reach
  for (const auto& [stride, size] : dims_by_stride(t)) {
    if (stride <= covered) return true;
    covered += stride * (size - 1);
  }
  return false;
}

void check_dtype_is(const Role& role, size_t i, ScalarType expected, ScalarType or_else) {
  const ScalarType actual = role.list[i].scalar_type();
  if (actual == expected || actual == or_else) return;
  const std::string alternative =
      expected == or_else ? "" : std::string(" or ") + toString(or_else);
  STD_TORCH_CHECK(false, role.name, "[", i, "] has dtype ", toString(actual), ", expected ",
                  toString(expected), alternative);
}

void check_one(const Role& role, size_t i, const Tensor& param) {
  const Tensor& t = role.list[i];
  STD_TORCH_CHECK(same_shape(t, param), role.name, "[", i, "] has shape ", shape_of(t),
                  ", its parameter ", shape_of(param));
  STD_TORCH_CHECK(t.is_cpu(), role.name, "[", i, "] is not on the CPU, as the first parameter is");
  STD_TORCH_CHECK(!role.written || t.is_contiguous() || !overlaps_itself(t), role.name, "[", i,
                  "] of shape ", shape_of(t),
                  " is written, and several of its elements share memory (an expanded tensor?)");
}

DType dtype_of(const Tensor& t) {
  return t.scalar_type() == ScalarType::Float ? DType::f32 : DType::bf16;
}

// Memory of index i of every list for the kernel: the tensors' own, or that of contiguous copies.
class Layout {
 public:
  Layout(const StepInputs& in, size_t i, PreparedSteps& out) : i_(i), out_(out) {
    const Tensor& param = in.params[i];
    bool contiguous = true, alike = true;
    for (const Role& role : roles(in)) {
      if (role.list.empty()) continue;
      contiguous = contiguous && role.list[i].is_contiguous();
      alike = alike && same_layout(role.list[i], param);
    }
    in_place_ = contiguous || (alike && is_dense(param));
  }

  void* memory(const TensorList& list, bool written) {
    if (list.empty()) return nullptr;
    const Tensor& t = list[i_];
    if (in_place_ || t.is_contiguous()) return t.data_ptr();
    out_.copies.push_back({t, torch::stable::contiguous(t), written});
    return out_.copies.back().copy.data_ptr();
  }

 private:
  size_t i_;
  PreparedSteps& out_;
  bool in_place_;
};

}  // namespace

StepRule step_rule(const std::string& rule) {
  if (rule == "evolution") return StepRule::evolution;
  if (rule == "taylor") return StepRule::taylor;
  STD_TORCH_CHECK(rule == "none" || rule == "magnitude",
                  "expected rule none, magnitude, evolution or taylor, got ", rule);
  return StepRule::none;
}

void check_step_inputs(const StepInputs& in) {
  const StepRule rule = step_rule(in.options.rule);
  const size_t count = in.params.size();
  STD_TORCH_CHECK(in.options.alpha >= 0 && in.options.alpha <= 1, "expected 0 <= alpha <= 1, got ",
                  in.options.alpha);
  STD_TORCH_CHECK(rule == StepRule::none || in.importances.size() == count, "rule ",
                  in.options.rule, " needs ", count, " importances, one a parameter, got ",
                  in.importances.size());
  STD_TORCH_CHECK(in.grads.size() == count, "expected ", count, " grads, got ", in.grads.size());
  STD_TORCH_CHECK(in.steps.size() == count, "expected ", count, " steps, got ", in.steps.size());
  for (const Role& role : roles(in)) {
    STD_TORCH_CHECK(role.list.empty() || role.list.size() == count, "expected ", count, " ",
                    role.name, ", one a parameter, or none, got ", role.list.size());
    for (size_t i = 0; i < role.list.size(); ++i) check_one(role, i, in.params[i]);
  }
  const std::vector<Role> all = roles(in);
  for (size_t i = 0; i < count; ++i) {
    const ScalarType dtype = in.params[i].scalar_type();
    check_dtype_is(all[0], i, ScalarType::Float, ScalarType::BFloat16);
    check_dtype_is(all[1], i, dtype, dtype);
    if (!in.moments.empty()) check_dtype_is(all[2], i, ScalarType::Float, dtype);
    for (size_t r = 3; r <= 4; ++r) {  // second moments have the dtype of the first
      const ScalarType state = in.moments.empty() ? dtype : in.moments[i].scalar_type();
      if (!all[r].list.empty()) check_dtype_is(all[r], i, state, state);
    }
    if (!in.importances.empty()) check_dtype_is(all[5], i, ScalarType::Float, ScalarType::Float);
    if (!in.masks.empty()) check_dtype_is(all[6], i, ScalarType::Bool, ScalarType::Bool);
    const Tensor& step = in.steps[i];
    STD_TORCH_CHECK(step.is_cpu() && step.numel() == 1 && step.scalar_type() == ScalarType::Float,
                    "expected steps[", i, "] of 1 element and dtype Float on the CPU, got ",
                    step.numel(), " of ", toString(step.scalar_type()));
  }
}

double read_number(const Tensor& t, const char* what) {
  STD_TORCH_CHECK(t.numel() == 1 && t.is_cpu(), "expected ", what,
                  " of 1 element on the CPU, got shape ", shape_of(t));
  const Tensor number = torch::stable::to(t, ScalarType::Double);
  return *static_cast<const double*>(number.const_data_ptr());
}

bool step_is_skipped(const StepOptions& options) {
  return options.found_inf && read_number(*options.found_inf, "found_inf") != 0;
}

bool share_memory(const TensorList& tensors) {
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

StepInputs only(const StepInputs& in, size_t i) {
  StepInputs one = in;
  for (TensorList* list : {&one.params, &one.grads, &one.moments, &one.squares,
                           &one.largest_squares, &one.importances, &one.masks, &one.steps})
    if (!list->empty()) *list = {(*list)[i]};
  return one;
}

PreparedSteps prepare_steps(const StepInputs& in) {
  PreparedSteps out;
  for (size_t i = 0; i < in.params.size(); ++i) {
    Layout layout(in, i, out);
    StepTensor t{};
    t.param = layout.memory(in.params, true);
    t.grad = layout.memory(in.grads, in.options.grad_scale.has_value());
    t.moment = layout.memory(in.moments, true);
    t.square = layout.memory(in.squares, true);
    t.largest_square = layout.memory(in.largest_squares, true);
    t.importance = static_cast<float*>(layout.memory(in.importances, true));
    t.mask = static_cast<const uint8_t*>(layout.memory(in.masks, false));
    t.numel = in.params[i].numel();
    const DType dtype = dtype_of(in.params[i]);
    out.entries.push_back({t, dtype, in.moments.empty() ? dtype : dtype_of(in.moments[i]),
                           static_cast<float*>(in.steps[i].data_ptr())});
  }
  return out;
}

void write_back(const PreparedSteps& prepared) {
  for (const StepCopy& c : prepared.copies) {
    Tensor target = c.original;
    if (c.written) torch::stable::copy_(target, c.copy);
  }
}

}  // namespace evoprune::binding
