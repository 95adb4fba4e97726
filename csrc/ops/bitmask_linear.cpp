// evoprune::bitmask_linear on the CPU: checks and layout. The kernel is in cpu/bitmask_linear.cpp.
#include "ops/strips.h"

namespace evoprune::binding {

namespace {

constexpr int64_t kNarrow = 1 << 16;

// The columns themselves are trusted: only bitmask_prepare makes them, and reading them all would
// cost as much as one token.
void check_prepared(const Prepared& p, Shape shape, bool narrow) {
  STD_TORCH_CHECK(p.values.dim() == 1, "expected prepared values of 1 dimension, got ",
                  p.values.dim());
  check_contiguous(p.values, "values");
  check_row_ptr(p.row_ptr, shape.out_features, p.values.size(0));
  check_dtype(p.columns, narrow ? ScalarType::Short : ScalarType::Int, "bits (prepared: columns)");
  STD_TORCH_CHECK(p.columns.dim() == 1, "expected prepared columns of 1 dimension, got ",
                  p.columns.dim());
  check_size(p.columns, 0, p.values.size(0), "columns.size(0)");
  check_contiguous(p.columns, "columns");
}

}  // namespace

Tensor bitmask_linear(Tensor x, Tensor values, Tensor bits, Tensor row_ptr,
                      std::optional<Tensor> bias, int64_t out_features, int64_t in_features,
                      std::string activation, std::string layout, std::optional<Tensor> scale) {
  const Shape shape{out_features, in_features};
  check_shape(shape);
  check_stored(values, scale, x);
  StripArgs args{};
  args.epilogue = epilogue_of(bias, scale, x, out_features, activation);
  args.strip = args.bk = 1;
  args.narrow = in_features <= kNarrow;
  Prepared weight{values, row_ptr, bits};
  if (is_prepared(layout)) {
    check_prepared(weight, shape, args.narrow);
  } else {
    STD_TORCH_CHECK(bits.dim() == 2, "expected bits of 2 dimensions, got ", bits.dim());
    check_size(bits, 0, out_features, "bits.size(0)");
    weight = bitmask_prepare(values, bits, row_ptr, in_features);
  }
  return strip_linear(x, weight, shape, args, kernels().bitmask_linear);
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("bitmask_linear", TORCH_BOX(&evoprune::binding::bitmask_linear));
}
