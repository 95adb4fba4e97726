// evoprune::gate_norm and its backward on the CPU: checks, threads, and what lies between the two
// passes over memory: numbers per channel. The kernels are in cpu/gate_norm.cpp.
//
//   u = gate * x        mean = sum_p n_p g_p m_p / n        var = sum_p (g_p^2 q_p + n_p (g_p m_p - mean)^2) / n
//
// with the parts p of a channel: n_p values of mean m_p and sum of squares q_p, under the gate g_p.
#include <cmath>
#include <tuple>
#include <vector>

#include "ops/channels.h"

namespace evoprune::binding {

namespace {

using Optional = std::optional<Tensor>;

// Wide [channels]; `otherwise` where there is none.
Tensor per_channel(const Tensor& x, const Optional& t, double otherwise, const char* what) {
  if (t.has_value()) {
    STD_TORCH_CHECK(t->dim() == 1, "expected ", what, " of 1 dimension, got ", t->dim());
    check_size(*t, 0, x.size(1), what);
    return widened(*t, wide_type(x));
  }
  Tensor filled = new_wide(x, {x.size(1)});
  with_wide(wide_type(x), [&]<typename T>() {
    std::fill_n(data<T>(filled), x.size(1), static_cast<T>(otherwise));
  });
  return filled;
}

struct Inputs {
  ChannelLayout layout;
  Tensor x, gates, weight, bias;
  double eps;
  bool relu;

  ScalarType wide() const { return wide_type(x); }
  double count() const { return static_cast<double>(layout.samples * layout.inner); }
  bool empty() const { return x.numel() == 0; }
};

Inputs read(const Tensor& x, const Tensor& gates, const Optional& weight, const Optional& bias,
            double eps, bool relu) {
  const ChannelLayout layout = channel_layout(x, &gates);
  return {layout,
          in_order(x, memory_format(x)),
          widened(gates, wide_type(x)),
          per_channel(x, weight, 1.0, "weight"),
          per_channel(x, bias, 0.0, "bias"),
          eps,
          relu};
}

template <typename T>
void combine(const Inputs& in, const Tensor& means, const Tensor& squares, Tensor& mean,
             Tensor& var) {
  const ChannelLayout& l = in.layout;
  const auto size = static_cast<size_t>(l.channels);
  std::vector<double> centre(size, 0.0), spread(size, 0.0);
  const auto walk = [&](auto each) {
    for (int64_t part = 0; part < l.parts(); ++part) {
      const T* gates = data<T>(in.gates) + l.group_of(part) * l.channels;
      const T* m = data<T>(means) + part * l.channels;
      const T* q = data<T>(squares) + part * l.channels;
      const auto n = static_cast<double>(l.count_of(part));
      for (size_t c = 0; c < size; ++c) {
        const bool open = gates[c] != 0;
        each(c, n, double(gates[c]), open ? double(m[c]) : 0.0, open ? double(q[c]) : 0.0);
      }
    }
  };
  walk([&](size_t c, double n, double g, double m, double) { centre[c] += n * g * m; });
  for (double& value : centre) value /= in.count();
  walk([&](size_t c, double n, double g, double m, double q) {
    const double off = g * m - centre[c];
    spread[c] += g * g * q + n * off * off;
  });
  for (size_t c = 0; c < size; ++c) {
    data<T>(mean)[c] = static_cast<T>(centre[c]);
    data<T>(var)[c] = static_cast<T>(spread[c] / in.count());
  }
}

// Mean and variance of u, wide [channels].
std::tuple<Tensor, Tensor> statistics(const Inputs& in) {
  const ChannelLayout& l = in.layout;
  Tensor means = new_wide(in.x, {l.parts(), l.channels});
  Tensor squares = new_wide(in.x, {l.parts(), l.channels});
  run_channels(kernels().channels.statistics,
               GateStatisticsArgs{l, in.x.const_data_ptr(), in.gates.const_data_ptr(),
                                  means.mutable_data_ptr(), squares.mutable_data_ptr()});
  Tensor mean = new_wide(in.x, {l.channels}), var = new_wide(in.x, {l.channels});
  with_wide(in.wide(), [&]<typename T>() { combine<T>(in, means, squares, mean, var); });
  return {mean, var};
}

// What cpu/gates.h calls the terms, and the factor of the gradient, weight / std, for both passes.
struct Terms {
  Tensor scale, shift, spread, centre, factor;

  GateNormTerms of(const Inputs& in) const {
    return {in.gates.const_data_ptr(), scale.const_data_ptr(),  shift.const_data_ptr(),
            spread.const_data_ptr(),   centre.const_data_ptr(), in.relu};
  }
};

template <typename T>
void fill(const Inputs& in, const Tensor& mean, const Tensor& var, Terms& t) {
  const int64_t channels = in.layout.channels;
  for (int64_t c = 0; c < channels; ++c) {
    const double inverse = 1.0 / std::sqrt(double(data<T>(var)[c]) + in.eps);
    const double m = data<T>(mean)[c], weight = data<T>(in.weight)[c];
    data<T>(t.factor)[c] = static_cast<T>(weight * inverse);
    data<T>(t.shift)[c] = static_cast<T>(double(data<T>(in.bias)[c]) - m * weight * inverse);
    data<T>(t.centre)[c] = static_cast<T>(-m * inverse);
    for (int64_t g = 0; g < in.layout.groups(); ++g) {
      const double gate = data<T>(in.gates)[g * channels + c];
      data<T>(t.scale)[g * channels + c] = static_cast<T>(gate * weight * inverse);
      data<T>(t.spread)[g * channels + c] = static_cast<T>(gate * inverse);
    }
  }
}

Terms terms(const Inputs& in, const Tensor& mean, const Tensor& var) {
  const ChannelLayout& l = in.layout;
  Terms t{new_wide(in.x, {l.groups(), l.channels}), new_wide(in.x, {l.channels}),
          new_wide(in.x, {l.groups(), l.channels}), new_wide(in.x, {l.channels}),
          new_wide(in.x, {l.channels})};
  with_wide(in.wide(), [&]<typename T>() { fill<T>(in, mean, var, t); });
  return t;
}

// The gradients of what is per channel, and the coefficients of dx, from the sums.
struct Gradients {
  Tensor gates, weight, bias;         // gates: empty where they are not wanted
  Tensor of_grad, of_xhat, constant;  // [groups, channels]
};

template <typename T>
void gradients(const Inputs& in, const Terms& t, const Tensor& parts, bool training, bool gates_too,
               Gradients& out) {
  const ChannelLayout& l = in.layout;
  const int64_t channels = l.channels, sums = kGateNormSums;
  std::vector<double> of_group(static_cast<size_t>(l.groups() * sums * channels), 0.0);
  for (int64_t part = 0; part < l.parts(); ++part) {
    const T* from = data<T>(parts) + part * sums * channels;
    double* to = of_group.data() + l.group_of(part) * sums * channels;
    for (int64_t i = 0; i < (gates_too ? sums : 2) * channels; ++i) to[i] += from[i];
  }
  for (int64_t c = 0; c < channels; ++c) {
    double dz = 0, dz_xhat = 0;
    for (int64_t g = 0; g < l.groups(); ++g) {
      dz += of_group[g * sums * channels + c];
      dz_xhat += of_group[(g * sums + 1) * channels + c];
    }
    data<T>(out.bias)[c] = static_cast<T>(dz);
    data<T>(out.weight)[c] = static_cast<T>(dz_xhat);
    const double factor = data<T>(t.factor)[c];
    const double mean_dz = training ? dz / in.count() : 0;
    const double mean_dz_xhat = training ? dz_xhat / in.count() : 0;
    for (int64_t g = 0; g < l.groups(); ++g) {
      const int64_t at = g * channels + c;
      const double of_grad = double(data<T>(in.gates)[at]) * factor;
      data<T>(out.of_grad)[at] = static_cast<T>(of_grad);
      data<T>(out.of_xhat)[at] = static_cast<T>(-of_grad * mean_dz_xhat);
      data<T>(out.constant)[at] = static_cast<T>(-of_grad * mean_dz);
      if (!gates_too) continue;
      const double* of = of_group.data() + g * sums * channels + c;
      const double through =
          training ? mean_dz * of[3 * channels] + mean_dz_xhat * of[4 * channels] : 0;
      data<T>(out.gates)[at] = static_cast<T>(factor * (of[2 * channels] - through));
    }
  }
}

Gradients new_gradients(const Inputs& in, const Tensor& gates, bool gates_too) {
  const ChannelLayout& l = in.layout;
  const int64_t nothing[] = {0};
  const auto sizes =
      gates_too ? gates.sizes() : torch::headeronly::IntHeaderOnlyArrayRef(nothing, 1);
  return {torch::stable::new_zeros(in.x, sizes, in.wide()),
          new_wide(in.x, {l.channels}, true),
          new_wide(in.x, {l.channels}, true),
          new_wide(in.x, {l.groups(), l.channels}),
          new_wide(in.x, {l.groups(), l.channels}),
          new_wide(in.x, {l.groups(), l.channels})};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> gate_norm(Tensor x, Tensor gates, Optional weight, Optional bias,
                                             Optional mean, Optional var, double eps, bool relu) {
  const Inputs in = read(x, gates, weight, bias, eps, relu);
  STD_TORCH_CHECK(mean.has_value() == var.has_value(), "expected mean and var, or neither");
  STD_TORCH_CHECK(mean.has_value() || in.count() > 1,
                  "expected more than 1 value per channel when training, got ", in.count());
  Tensor m = new_wide(in.x, {x.size(1)}), v = new_wide(in.x, {x.size(1)});
  if (mean.has_value()) {
    torch::stable::copy_(m, per_channel(x, mean, 0, "mean"));
    torch::stable::copy_(v, per_channel(x, var, 0, "var"));
  } else if (!in.empty()) {
    std::tie(m, v) = statistics(in);
  }
  Tensor y = torch::stable::empty_like(in.x);
  if (in.empty()) return {y, m, v};
  const Terms t = terms(in, m, v);
  run_channels(kernels().channels.norm,
               GateNormArgs{in.layout, t.of(in), in.x.const_data_ptr(), y.mutable_data_ptr()});
  return {y, m, v};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gate_norm_backward(Tensor grad, Tensor x, Tensor gates,
                                                              Optional weight, Optional bias,
                                                              Tensor mean, Tensor var,
                                                              bool training, double eps, bool relu,
                                                              bool gates_too) {
  const Inputs in = read(x, gates, weight, bias, eps, relu);
  check_like(grad, x);
  grad = in_order(grad, memory_format(x));
  const Tensor m = per_channel(x, mean, 0, "mean"), v = per_channel(x, var, 0, "var");
  Gradients out = new_gradients(in, gates, gates_too);
  Tensor dx = torch::stable::empty_like(in.x);
  if (!in.empty()) {
    const Terms t = terms(in, m, v);
    Tensor parts = new_wide(in.x, {in.layout.parts(), kGateNormSums, in.layout.channels});
    run_channels(kernels().channels.norm_sums,
                 GateNormSumsArgs{in.layout, t.of(in), grad.const_data_ptr(), in.x.const_data_ptr(),
                                  parts.mutable_data_ptr(), gates_too});
    with_wide(in.wide(),
              [&]<typename T>() { gradients<T>(in, t, parts, training, gates_too, out); });
    run_channels(kernels().channels.norm_grad,
                 GateNormGradArgs{in.layout, t.of(in), grad.const_data_ptr(), in.x.const_data_ptr(),
                                  out.of_grad.const_data_ptr(), out.of_xhat.const_data_ptr(),
                                  out.constant.const_data_ptr(), training, dx.mutable_data_ptr()});
  }
  const auto as = [&](const Tensor& t, const Optional& like) {
    return narrowed(t, like.has_value() ? like->scalar_type() : in.wide());
  };
  return {dx, narrowed(out.gates, gates.scalar_type()), as(out.weight, weight), as(out.bias, bias)};
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("gate_norm", TORCH_BOX(&evoprune::binding::gate_norm));
  m.impl("gate_norm_backward", TORCH_BOX(&evoprune::binding::gate_norm_backward));
}
