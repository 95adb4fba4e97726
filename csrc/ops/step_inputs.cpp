// What makes the lists of an optimizer-step op fit for the CPU kernels; see step_inputs.h.
#include "ops/step_inputs.h"

namespace evoprune::binding {

namespace {

DType dtype_of(const Tensor& t) {
  return t.scalar_type() == ScalarType::Float ? DType::f32 : DType::bf16;
}

}  // namespace

double read_number(const Tensor& t, const char* what) {
  STD_TORCH_CHECK(t.numel() == 1 && t.is_cpu(), "expected ", what,
                  " of 1 element on the CPU, got shape ", shape_of(t));
  const Tensor number = torch::stable::to(t, ScalarType::Double);
  return *static_cast<const double*>(number.const_data_ptr());
}

void check_no_seed(const std::optional<int64_t>& seed) {
  STD_TORCH_CHECK(!seed, "the CPU kernels round to nearest: expected no seed, got ", *seed,
                  " (the reference takes one)");
}

bool step_is_skipped(const StepOptions& options) {
  return options.found_inf && read_number(*options.found_inf, "found_inf") != 0;
}

PreparedSteps prepare_steps(const StepInputs& in) {
  PreparedSteps out;
  for (size_t i = 0; i < in.params.size(); ++i) {
    StepLayout layout(in, i, out.copies);
    const auto memory = [&](const TensorList& list, bool written) {
      const Tensor* t = layout(list, written);
      return t == nullptr ? nullptr : t->data_ptr();
    };
    StepTensor t{};
    t.param = memory(in.params, true);
    t.grad = memory(in.grads, in.options.grad_scale.has_value());
    t.moment = memory(in.moments, true);
    t.square = memory(in.squares, true);
    t.largest_square = memory(in.largest_squares, true);
    t.importance = static_cast<float*>(memory(in.importances, true));
    t.mask = static_cast<const uint8_t*>(memory(in.masks, false));
    t.numel = in.params[i].numel();
    const DType dtype = dtype_of(in.params[i]);
    out.entries.push_back({t, dtype, in.moments.empty() ? dtype : dtype_of(in.moments[i]),
                           static_cast<float*>(in.steps[i].data_ptr())});
  }
  return out;
}

}  // namespace evoprune::binding
