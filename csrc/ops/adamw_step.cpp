// evoprune::adamw_step_ on the CPU: checks, layouts, bias corrections, threads. The kernel is in
// cpu/adamw_step.cpp.
#include <cmath>

#include "ops/step_inputs.h"

namespace evoprune::binding {

namespace {

struct AdamwOptions {
  double lr, beta1, beta2, eps, weight_decay;
};

void adamw_step_list(const StepInputs& in, const AdamwOptions& o) {
  PreparedSteps prepared = prepare_steps(in);
  for (size_t i = 0; i < in.params.size(); ++i) {
    // in double, like torch: 1 - beta**step loses its digits in single precision
    const double step = advance_step(in.steps[i]);
    StepTensor& t = prepared.items[i].tensor;
    t.step_size = static_cast<float>(o.lr / (1 - std::pow(o.beta1, step)));
    t.root_correction2 = static_cast<float>(std::sqrt(1 - std::pow(o.beta2, step)));
  }
  AdamwStepArgs args{};
  args.first_moment = importance::Average(1 - o.beta1);
  args.beta2 = static_cast<float>(o.beta2);
  args.square_weight = static_cast<float>(1 - o.beta2);
  args.eps = static_cast<float>(o.eps);
  args.weight_factor = static_cast<float>(1 - o.lr * o.weight_decay);
  launch_steps(kernels().adamw_step, args, in, prepared);
}

void adamw_step_inputs(const StepInputs& in, bool amsgrad, const AdamwOptions& o) {
  check_step_inputs(in);
  STD_TORCH_CHECK(in.moments.size() == in.params.size() && in.squares.size() == in.params.size(),
                  "expected ", in.params.size(), " exp_avgs and exp_avg_sqs, got ",
                  in.moments.size(), " and ", in.squares.size());
  STD_TORCH_CHECK(!amsgrad || in.largest_squares.size() == in.params.size(), "amsgrad needs ",
                  in.params.size(), " max_exp_avg_sqs, got ", in.largest_squares.size());
  if (step_is_skipped(in)) return;
  if (!share_memory(in.params)) return adamw_step_list(in, o);
  for (size_t i = 0; i < in.params.size(); ++i) adamw_step_list(only(in, i), o);
}

}  // namespace

void adamw_step(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                TensorList max_exp_avg_sqs, TensorList importances, TensorList masks,
                TensorList steps, double lr, double beta1, double beta2, double eps,
                double weight_decay, bool amsgrad, bool maximize, std::string rule, double alpha,
                std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  if (!amsgrad) max_exp_avg_sqs.clear();
  adamw_step_inputs({params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, importances, masks,
                     steps, grad_scale, found_inf, "exp_avgs", rule, alpha, maximize},
                    amsgrad, {lr, beta1, beta2, eps, weight_decay});
}

void adamw_step_tensor_lr(TensorList params, TensorList grads, TensorList exp_avgs,
                          TensorList exp_avg_sqs, TensorList max_exp_avg_sqs,
                          TensorList importances, TensorList masks, TensorList steps, Tensor lr,
                          double beta1, double beta2, double eps, double weight_decay, bool amsgrad,
                          bool maximize, std::string rule, double alpha,
                          std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  adamw_step(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, importances, masks, steps,
             read_number(lr, "lr"), beta1, beta2, eps, weight_decay, amsgrad, maximize, rule, alpha,
             grad_scale, found_inf);
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("adamw_step_", TORCH_BOX(&evoprune::binding::adamw_step));
  m.impl("adamw_step_.tensor_lr", TORCH_BOX(&evoprune::binding::adamw_step_tensor_lr));
}
