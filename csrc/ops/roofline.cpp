// The probes of cpu/roofline.cpp as raw functions; bench/roofline.py times them. No op of the
// package calls them.
#include <vector>

#include "ops/check.h"

namespace evoprune::binding {

namespace {

// Elements of a probe's buffer: whole spans of float32.
int64_t spans(const Tensor& t, const char* what) {
  check_dtype(t, ScalarType::Float, what);
  check_contiguous(t, what);
  STD_TORCH_CHECK(t.dim() == 1 && t.numel() > 0 && t.numel() % kProbeSpan == 0, "expected ", what,
                  " of 1 dimension and a multiple of ", kProbeSpan, " elements, got ", t.numel());
  return t.numel() / kProbeSpan;
}

void check_counts(int64_t repeats, int64_t ahead) {
  STD_TORCH_CHECK(repeats >= 1, "expected repeats >= 1, got ", repeats);
  STD_TORCH_CHECK(ahead >= 0, "expected ahead >= 0, got ", ahead);
}

float* floats(Tensor& t) {
  return static_cast<float*>(t.mutable_data_ptr());
}

}  // namespace

// The sum of `data`, read `repeats` times.
double probe_read(Tensor data, int64_t repeats, int64_t ahead, int64_t streams) {
  const int64_t units = spans(data, "data");
  check_counts(repeats, ahead);
  STD_TORCH_CHECK(1 <= streams && streams <= kProbeStreams, "expected streams of 1 to ",
                  kProbeStreams, ", got ", streams);
  std::vector<float> sums(static_cast<size_t>(units));
  const ProbeReadArgs args{static_cast<const float*>(data.const_data_ptr()), sums.data(), ahead,
                           static_cast<int>(streams)};
  for (int64_t i = 0; i < repeats; ++i) run(kernels().probe_read, args, units, streams);
  double total = 0;
  for (const float s : sums) total += s;
  return total;
}

// How many floating-point operations were done: `units` runs of `iterations` rounds of the chains.
int64_t probe_fma(int64_t units, int64_t iterations) {
  STD_TORCH_CHECK(units >= 1 && iterations >= 1, "expected units and iterations >= 1, got ", units,
                  " and ", iterations);
  std::vector<float> sums(static_cast<size_t>(units));
  std::vector<int64_t> flop(static_cast<size_t>(units));
  const ProbeFmaArgs args{0.999F, 1e-5F, iterations, sums.data(), flop.data()};
  run(kernels().probe_fma, args, units, 1);
  int64_t total = 0;
  for (const int64_t f : flop) total += f;
  return total;
}

void probe_stream(Tensor weight, Tensor grad, Tensor moment, Tensor square, Tensor importance,
                  Tensor mask, double step, int64_t ahead) {
  const int64_t units = spans(weight, "weight");
  check_counts(1, ahead);
  const std::pair<const Tensor*, const char*> others[] = {
      {&grad, "grad"}, {&moment, "moment"}, {&square, "square"}, {&importance, "importance"}};
  for (const auto& [tensor, what] : others) {
    spans(*tensor, what);
    check_size(*tensor, 0, weight.numel(), what);
  }
  check_dtype(mask, ScalarType::Bool, "mask");
  check_contiguous(mask, "mask");
  check_size(mask, 0, weight.numel(), "mask");
  const ProbeStreamArgs args{
      floats(weight),           static_cast<const float*>(grad.const_data_ptr()),
      floats(moment),           floats(square),
      floats(importance),       static_cast<const uint8_t*>(mask.const_data_ptr()),
      static_cast<float>(step), ahead};
  run(kernels().probe_stream, args, units, 1);
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_FRAGMENT(evoprune_raw, m) {
  m.def("probe_read(Tensor data, int repeats, int ahead, int streams) -> float");
  m.def("probe_fma(int units, int iterations) -> int");
  m.def(
      "probe_stream(Tensor(a!) weight, Tensor grad, Tensor(b!) moment, Tensor(c!) square, "
      "Tensor(d!) importance, Tensor mask, float step, int ahead) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(evoprune_raw, CompositeExplicitAutograd, m) {
  m.impl("probe_read", TORCH_BOX(&evoprune::binding::probe_read));
  m.impl("probe_fma", TORCH_BOX(&evoprune::binding::probe_fma));
  m.impl("probe_stream", TORCH_BOX(&evoprune::binding::probe_stream));
}
