// evoprune::block_linear on the CPU: checks and layout. The kernel is in cpu/block_linear.cpp.
#include <numeric>

#include "ops/strips.h"

namespace evoprune::binding {

namespace {

// Prepared tensors of a caller: every index is checked, they are few beside the values.
void check_prepared(const Prepared& p, Shape shape, int64_t bk, int64_t strip) {
  STD_TORCH_CHECK(p.values.dim() == 3 && p.values.size(1) == bk && p.values.size(2) == strip,
                  "expected prepared values [entries, ", bk, ", ", strip, "], got ", p.values.dim(),
                  " dimensions [.., ", p.values.dim() > 1 ? p.values.size(1) : -1, ", ",
                  p.values.dim() > 2 ? p.values.size(2) : -1, "]");
  check_contiguous(p.values, "values");
  const int64_t count = p.values.size(0);
  check_row_ptr(p.row_ptr, ceil_div(shape.out_features, strip), count);
  check_dtype(p.columns, ScalarType::Int, "col_idx");
  check_size(p.columns, 0, count, "col_idx.size(0)");
  check_contiguous(p.columns, "col_idx");
  const int64_t last = ceil_div(shape.in_features, bk) * bk - bk;
  const int32_t* columns = data_of<int32_t>(p.columns);
  int32_t low = 0, high = 0;
  for (int64_t e = 0; e < count; ++e) {
    low = std::min(low, columns[e]);
    high = std::max(high, columns[e]);
  }
  STD_TORCH_CHECK(low >= 0 && (count == 0 || high <= last),
                  "expected prepared col_idx within 0 to ", last, ", got ", low, " to ", high);
}

}  // namespace

BlockStrips block_strips(const Prepared& weight, Shape shape, int64_t bn, int64_t bk,
                         const std::string& layout) {
  check_shape(shape);
  STD_TORCH_CHECK(bn >= 1 && bk >= 1 && bn <= INT32_MAX && bk <= INT32_MAX,
                  "expected bn >= 1 and bk >= 1, got ", bn, " and ", bk);
  BlockStrips strips{weight, {}};
  strips.args.strip = static_cast<int>(std::gcd(bn, int64_t{16}));
  strips.args.bk = static_cast<int>(bk);
  if (is_prepared(layout)) {
    check_prepared(weight, shape, bk, strips.args.strip);
    return strips;
  }
  const Tensor& values = weight.values;
  STD_TORCH_CHECK(values.dim() == 3 && values.size(1) == bn && values.size(2) == bk,
                  "expected values [nnz, ", bn, ", ", bk, "], got ", values.dim(),
                  " dimensions [.., ", values.dim() > 1 ? values.size(1) : -1, ", ",
                  values.dim() > 2 ? values.size(2) : -1, "]");
  strips.weight = block_prepare(values, weight.row_ptr, weight.columns, shape);
  return strips;
}

Tensor block_linear(Tensor x, Tensor values, Tensor row_ptr, Tensor col_idx,
                    std::optional<Tensor> bias, int64_t out_features, int64_t in_features,
                    int64_t bn, int64_t bk, std::string activation, std::string layout,
                    std::optional<Tensor> scale) {
  const Shape shape{out_features, in_features};
  check_stored(values, scale, x);
  const Epilogue epilogue = epilogue_of(bias, scale, x, out_features, activation);
  BlockStrips strips = block_strips({values, row_ptr, col_idx}, shape, bn, bk, layout);
  strips.args.epilogue = epilogue;
  return strip_linear(x, strips.weight, shape, strips.args, kernels().block_linear);
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("block_linear", TORCH_BOX(&evoprune::binding::block_linear));
}
