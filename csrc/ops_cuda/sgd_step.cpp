// evoprune::sgd_step_ on CUDA: checks and layouts. The kernel is in cuda/sgd_step.cu.
#include "cuda/sgd_step.h"

#include "ops_cuda/step_inputs.h"

namespace evoprune::binding_cuda {

namespace {

struct SgdOptions {
  std::optional<Tensor> lr;
  double lr_value, momentum, dampening, weight_decay;
  bool nesterov;
};

void sgd_step_inputs(const StepInputs& in, const SgdOptions& o,
                     const std::optional<int64_t>& seed) {
  binding::check_step_inputs(in);
  binding::check_buffers(in, o.momentum);
  run_steps(
      in, o.lr, o.lr_value, seed,
      [&](const cuda::StepShared& shared, const std::vector<StepItem>& items, cudaStream_t stream) {
        cuda::SgdStepArgs args{};
        args.shared = shared;
        args.momentum = static_cast<float>(o.momentum);
        args.undampened = static_cast<float>(1 - o.dampening);
        args.weight_decay = static_cast<float>(o.weight_decay);
        args.decays = o.weight_decay != 0;
        args.nesterov = o.nesterov;
        cuda::sgd_step(args, items.data(), static_cast<int64_t>(items.size()), stream);
      });
}

}  // namespace

void sgd_step(TensorList params, TensorList grads, TensorList momentum_buffers,
              TensorList importances, TensorList masks, TensorList steps, double lr,
              double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
              std::string rule, double alpha, std::optional<Tensor> grad_scale,
              std::optional<Tensor> found_inf, std::optional<int64_t> seed, std::string point,
              double sparse_decay) {
  if (momentum == 0) momentum_buffers.clear();
  sgd_step_inputs({params,
                   grads,
                   momentum_buffers,
                   {},
                   {},
                   importances,
                   masks,
                   steps,
                   {grad_scale, found_inf, rule, alpha, maximize, point, sparse_decay},
                   "momentum_buffers"},
                  {std::nullopt, lr, momentum, dampening, weight_decay, nesterov}, seed);
}

void sgd_step_tensor_lr(TensorList params, TensorList grads, TensorList momentum_buffers,
                        TensorList importances, TensorList masks, TensorList steps, Tensor lr,
                        double momentum, double dampening, double weight_decay, bool nesterov,
                        bool maximize, std::string rule, double alpha,
                        std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf,
                        std::optional<int64_t> seed, std::string point, double sparse_decay) {
  if (momentum == 0) momentum_buffers.clear();
  sgd_step_inputs({params,
                   grads,
                   momentum_buffers,
                   {},
                   {},
                   importances,
                   masks,
                   steps,
                   {grad_scale, found_inf, rule, alpha, maximize, point, sparse_decay},
                   "momentum_buffers"},
                  {lr, 0, momentum, dampening, weight_decay, nesterov}, seed);
}

}  // namespace evoprune::binding_cuda

EVOPRUNE_CUDA_LIBRARY(m) {
  m.impl("sgd_step_", TORCH_BOX(&evoprune::binding_cuda::sgd_step));
  m.impl("sgd_step_.tensor_lr", TORCH_BOX(&evoprune::binding_cuda::sgd_step_tensor_lr));
}
