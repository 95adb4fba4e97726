// evoprune::sgd_step_ on the CPU: checks, layouts, threads. The kernel is in cpu/sgd_step.cpp.
#include "ops/step_inputs.h"

namespace evoprune::binding {

namespace {

struct SgdOptions {
  double lr, momentum, dampening, weight_decay;
  bool nesterov;
};

void launch(const StepEntries entries, const SgdOptions& o, const StepOptions& options,
            double grad_scale) {
  for (StepEntry& entry : entries) entry.tensor.first_step = (*entry.step += 1) == 1;
  SgdStepArgs args{};
  args.lr = static_cast<float>(o.lr);
  args.momentum = static_cast<float>(o.momentum);
  args.undampened = static_cast<float>(1 - o.dampening);
  args.weight_decay = static_cast<float>(o.weight_decay);
  args.decays = o.weight_decay != 0;
  args.nesterov = o.nesterov;
  launch_steps(kernels().sgd_step, args, options, o.lr, grad_scale, entries);
}

void sgd_step_inputs(const StepInputs& in, const SgdOptions& o) {
  check_step_inputs(in);
  check_buffers(in, o.momentum);
  run_steps(in, [&](StepEntries entries, double grad_scale) {
    launch(entries, o, in.options, grad_scale);
  });
}

}  // namespace

void sgd_step(TensorList params, TensorList grads, TensorList momentum_buffers,
              TensorList importances, TensorList masks, TensorList steps, double lr,
              double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
              std::string rule, double alpha, std::optional<Tensor> grad_scale,
              std::optional<Tensor> found_inf, std::optional<int64_t> seed, std::string point,
              double sparse_decay) {
  check_no_seed(seed);
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
                  {lr, momentum, dampening, weight_decay, nesterov});
}

void sgd_step_tensor_lr(TensorList params, TensorList grads, TensorList momentum_buffers,
                        TensorList importances, TensorList masks, TensorList steps, Tensor lr,
                        double momentum, double dampening, double weight_decay, bool nesterov,
                        bool maximize, std::string rule, double alpha,
                        std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf,
                        std::optional<int64_t> seed, std::string point, double sparse_decay) {
  sgd_step(params, grads, momentum_buffers, importances, masks, steps, read_number(lr, "lr"),
           momentum, dampening, weight_decay, nesterov, maximize, rule, alpha, grad_scale,
           found_inf, seed, point, sparse_decay);
}

void sgd_step_entries(int64_t address, int64_t count, double lr, double momentum, double dampening,
                      double weight_decay, bool nesterov, bool maximize, std::string rule,
                      double alpha, std::optional<Tensor> grad_scale,
                      std::optional<Tensor> found_inf, std::string point, double sparse_decay) {
  const StepOptions options{grad_scale, found_inf, rule, alpha, maximize, point, sparse_decay};
  run_entries(address, count, options, [&](StepEntries entries, double scale) {
    launch(entries, {lr, momentum, dampening, weight_decay, nesterov}, options, scale);
  });
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("sgd_step_", TORCH_BOX(&evoprune::binding::sgd_step));
  m.impl("sgd_step_.tensor_lr", TORCH_BOX(&evoprune::binding::sgd_step_tensor_lr));
}
STABLE_TORCH_LIBRARY_FRAGMENT(evoprune_raw, m) {
  m.def(
      "sgd_step_entries(int address, int count, float lr, float momentum, float dampening, "
      "float weight_decay, bool nesterov, bool maximize, str rule, float alpha, "
      "Tensor? grad_scale, Tensor? found_inf, str point, float sparse_decay) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(evoprune_raw, CompositeExplicitAutograd, m) {
  m.impl("sgd_step_entries", TORCH_BOX(&evoprune::binding::sgd_step_entries));
}
