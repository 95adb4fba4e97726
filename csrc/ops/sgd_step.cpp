// evoprune::sgd_step_ on the CPU: checks, layouts, threads. The kernel is in cpu/sgd_step.cpp.
#include "ops/step_inputs.h"

namespace evoprune::binding {

namespace {

struct SgdOptions {
  double lr, momentum, dampening, weight_decay;
  bool nesterov;
};

void sgd_step_list(const StepInputs& in, const SgdOptions& o) {
  PreparedSteps prepared = prepare_steps(in);
  for (size_t i = 0; i < in.params.size(); ++i)
    prepared.items[i].tensor.first_step = advance_step(in.steps[i]) == 1;
  SgdStepArgs args{};
  args.lr = static_cast<float>(o.lr);
  args.momentum = static_cast<float>(o.momentum);
  args.undampened = static_cast<float>(1 - o.dampening);
  args.weight_decay = static_cast<float>(o.weight_decay);
  args.decays = o.weight_decay != 0;
  args.nesterov = o.nesterov;
  launch_steps(kernels().sgd_step, args, in, prepared);
}

void sgd_step_inputs(const StepInputs& in, const SgdOptions& o) {
  check_step_inputs(in);
  STD_TORCH_CHECK(o.momentum == 0 || in.moments.size() == in.params.size(), "momentum=", o.momentum,
                  " needs ", in.params.size(), " momentum_buffers, got ", in.moments.size());
  if (step_is_skipped(in)) return;
  if (!share_memory(in.params)) return sgd_step_list(in, o);
  for (size_t i = 0; i < in.params.size(); ++i) sgd_step_list(only(in, i), o);
}

}  // namespace

void sgd_step(TensorList params, TensorList grads, TensorList momentum_buffers,
              TensorList importances, TensorList masks, TensorList steps, double lr,
              double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
              std::string rule, double alpha, std::optional<Tensor> grad_scale,
              std::optional<Tensor> found_inf) {
  if (momentum == 0) momentum_buffers.clear();
  sgd_step_inputs({params,
                   grads,
                   momentum_buffers,
                   {},
                   {},
                   importances,
                   masks,
                   steps,
                   grad_scale,
                   found_inf,
                   "momentum_buffers",
                   rule,
                   alpha,
                   maximize},
                  {lr, momentum, dampening, weight_decay, nesterov});
}

void sgd_step_tensor_lr(TensorList params, TensorList grads, TensorList momentum_buffers,
                        TensorList importances, TensorList masks, TensorList steps, Tensor lr,
                        double momentum, double dampening, double weight_decay, bool nesterov,
                        bool maximize, std::string rule, double alpha,
                        std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  sgd_step(params, grads, momentum_buffers, importances, masks, steps, read_number(lr, "lr"),
           momentum, dampening, weight_decay, nesterov, maximize, rule, alpha, grad_scale,
           found_inf);
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("sgd_step_", TORCH_BOX(&evoprune::binding::sgd_step));
  m.impl("sgd_step_.tensor_lr", TORCH_BOX(&evoprune::binding::sgd_step_tensor_lr));
}
