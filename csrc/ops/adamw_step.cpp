// evoprune::adamw_step_ on the CPU: checks, layouts, bias corrections, threads. The kernel is in
// cpu/adamw_step.cpp.
#include <cmath>

#include "ops/step_inputs.h"

namespace evoprune::binding {

namespace {

struct AdamwOptions {
  double lr, beta1, beta2, eps, weight_decay;
};

void launch(const StepEntries entries, const AdamwOptions& o, const StepOptions& options,
            double grad_scale) {
  double known = -1;  // the step of the parameter before: most parameters took as many
  float step_size = 0, root_correction2 = 0;
  for (StepEntry& entry : entries) {
    const double step = *entry.step += 1;
    if (step != known) {
      // in double, like torch: 1 - beta**step loses its digits in single precision
      step_size = static_cast<float>(o.lr / (1 - std::pow(o.beta1, step)));
      root_correction2 = static_cast<float>(std::sqrt(1 - std::pow(o.beta2, step)));
      known = step;
    }
    entry.tensor.step_size = step_size;
    entry.tensor.root_correction2 = root_correction2;
  }
  AdamwStepArgs args{};
  args.first_moment = importance::Average(1 - o.beta1);
  args.beta2 = static_cast<float>(o.beta2);
  args.square_weight = static_cast<float>(1 - o.beta2);
  args.eps = static_cast<float>(o.eps);
  args.weight_factor = static_cast<float>(1 - o.lr * o.weight_decay);
  launch_steps(kernels().adamw_step, args, options, o.lr, grad_scale, entries);
}

void adamw_step_inputs(const StepInputs& in, bool amsgrad, const AdamwOptions& o) {
  check_step_inputs(in);
  check_moments(in, amsgrad);
  run_steps(in, [&](StepEntries entries, double grad_scale) {
    launch(entries, o, in.options, grad_scale);
  });
}

}  // namespace

void adamw_step(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                TensorList max_exp_avg_sqs, TensorList importances, TensorList masks,
                TensorList steps, double lr, double beta1, double beta2, double eps,
                double weight_decay, bool amsgrad, bool maximize, std::string rule, double alpha,
                std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf,
                std::optional<int64_t> seed, std::string point, double sparse_decay) {
  check_no_seed(seed);
  if (!amsgrad) max_exp_avg_sqs.clear();
  adamw_step_inputs({params,
                     grads,
                     exp_avgs,
                     exp_avg_sqs,
                     max_exp_avg_sqs,
                     importances,
                     masks,
                     steps,
                     {grad_scale, found_inf, rule, alpha, maximize, point, sparse_decay},
                     "exp_avgs"},
                    amsgrad, {lr, beta1, beta2, eps, weight_decay});
}

void adamw_step_tensor_lr(TensorList params, TensorList grads, TensorList exp_avgs,
                          TensorList exp_avg_sqs, TensorList max_exp_avg_sqs,
                          TensorList importances, TensorList masks, TensorList steps, Tensor lr,
                          double beta1, double beta2, double eps, double weight_decay, bool amsgrad,
                          bool maximize, std::string rule, double alpha,
                          std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf,
                          std::optional<int64_t> seed, std::string point, double sparse_decay) {
  adamw_step(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, importances, masks, steps,
             read_number(lr, "lr"), beta1, beta2, eps, weight_decay, amsgrad, maximize, rule, alpha,
             grad_scale, found_inf, seed, point, sparse_decay);
}

void adamw_step_entries(int64_t address, int64_t count, double lr, double beta1, double beta2,
                        double eps, double weight_decay, bool maximize, std::string rule,
                        double alpha, std::optional<Tensor> grad_scale,
                        std::optional<Tensor> found_inf, std::string point, double sparse_decay) {
  const StepOptions options{grad_scale, found_inf, rule, alpha, maximize, point, sparse_decay};
  run_entries(address, count, options, [&](StepEntries entries, double scale) {
    launch(entries, {lr, beta1, beta2, eps, weight_decay}, options, scale);
  });
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("adamw_step_", TORCH_BOX(&evoprune::binding::adamw_step));
  m.impl("adamw_step_.tensor_lr", TORCH_BOX(&evoprune::binding::adamw_step_tensor_lr));
}
STABLE_TORCH_LIBRARY_FRAGMENT(evoprune_raw, m) {
  m.def(
      "adamw_step_entries(int address, int count, float lr, float beta1, float beta2, float eps, "
      "float weight_decay, bool maximize, str rule, float alpha, Tensor? grad_scale, "
      "Tensor? found_inf, str point, float sparse_decay) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(evoprune_raw, CompositeExplicitAutograd, m) {
  m.impl("adamw_step_entries", TORCH_BOX(&evoprune::binding::adamw_step_entries));
}
