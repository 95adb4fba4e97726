// evoprune::adamw_step_ on CUDA: checks and layouts. The kernel is in cuda/adamw_step.cu.
#include "cuda/adamw_step.h"

#include <cmath>

#include "ops_cuda/step_inputs.h"

namespace evoprune::binding_cuda {

namespace {

struct AdamwOptions {
  std::optional<Tensor> lr;
  double lr_value, beta1, beta2, eps, weight_decay;
  bool amsgrad;
};

void check_beta(double beta, const char* what) {
  STD_TORCH_CHECK(beta >= 0 && beta <= 1, "expected 0 <= ", what, " <= 1, got ", beta);
}

void adamw_step_inputs(const StepInputs& in, const AdamwOptions& o,
                       const std::optional<int64_t>& seed) {
  binding::check_step_inputs(in);
  binding::check_moments(in, o.amsgrad);
  check_beta(o.beta1, "beta1");
  check_beta(o.beta2, "beta2");
  run_steps(
      in, o.lr, o.lr_value, seed,
      [&](const cuda::StepShared& shared, const std::vector<StepItem>& items, cudaStream_t stream) {
        cuda::AdamwStepArgs args{};
        args.shared = shared;
        args.first_moment = importance::Average(1 - o.beta1);
        args.beta2 = static_cast<float>(o.beta2);
        args.square_weight = static_cast<float>(1 - o.beta2);
        args.eps = static_cast<float>(o.eps);
        args.log_beta1 = std::log(o.beta1);
        args.log_beta2 = std::log(o.beta2);
        args.weight_decay = o.weight_decay;
        cuda::adamw_step(args, items.data(), static_cast<int64_t>(items.size()), stream);
      });
}

}  // namespace

void adamw_step(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                TensorList max_exp_avg_sqs, TensorList importances, TensorList masks,
                TensorList steps, double lr, double beta1, double beta2, double eps,
                double weight_decay, bool amsgrad, bool maximize, std::string rule, double alpha,
                std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf,
                std::optional<int64_t> seed, std::string point, double sparse_decay) {
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
                    {std::nullopt, lr, beta1, beta2, eps, weight_decay, amsgrad}, seed);
}

void adamw_step_tensor_lr(TensorList params, TensorList grads, TensorList exp_avgs,
                          TensorList exp_avg_sqs, TensorList max_exp_avg_sqs,
                          TensorList importances, TensorList masks, TensorList steps, Tensor lr,
                          double beta1, double beta2, double eps, double weight_decay, bool amsgrad,
                          bool maximize, std::string rule, double alpha,
                          std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf,
                          std::optional<int64_t> seed, std::string point, double sparse_decay) {
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
                    {lr, 0, beta1, beta2, eps, weight_decay, amsgrad}, seed);
}

}  // namespace evoprune::binding_cuda

EVOPRUNE_CUDA_LIBRARY(m) {
  m.impl("adamw_step_", TORCH_BOX(&evoprune::binding_cuda::adamw_step));
  m.impl("adamw_step_.tensor_lr", TORCH_BOX(&evoprune::binding_cuda::adamw_step_tensor_lr));
}
