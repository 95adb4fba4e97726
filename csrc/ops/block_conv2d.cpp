// evoprune::block_conv2d on the CPU, and the convolution of every weight in strips.
#include <numeric>

#include "core/plan.h"
#include "ops/conv.h"

namespace evoprune::binding {

namespace {

void run_strips(const void* self, const float* x, int64_t, int64_t count, void* y, Planes planes,
                int64_t begin, int64_t end) {
  StripArgs args = *static_cast<const StripArgs*>(self);
  args.x = x;
  args.tokens = count;
  args.y = y;
  args.planes = planes;
  kernels().strip_panels(args, begin, end);
}

// Which columns any strip reads; an entry beyond `padded` is refused.
template <typename Index>
std::vector<uint8_t> used_columns(const Tensor& columns, int64_t bk, int64_t padded) {
  std::vector<uint8_t> used(static_cast<size_t>(padded));
  const Index* first = data_of<Index>(columns);
  for (int64_t e = 0; e < columns.numel(); ++e) {
    STD_TORCH_CHECK(first[e] >= 0 && first[e] + bk <= padded,
                    "expected prepared columns within 0 to ", padded - bk, ", got ", first[e]);
    std::fill_n(used.begin() + first[e], static_cast<size_t>(bk), uint8_t{1});
  }
  return used;
}

}  // namespace

Tensor strip_conv2d(const Tensor& x, const ConvShape& shape, const Prepared& weight, StripArgs a) {
  a.dtype = stored_dtype(weight.values);
  a.out_features = shape.out_channels;
  if (a.padded == 0) a.padded = ceil_div(shape.columns(), a.bk) * a.bk;
  a.values = weight.values.const_data_ptr();
  a.row_ptr = data_of<int32_t>(weight.row_ptr);
  a.columns = weight.columns.const_data_ptr();
  const int lanes = kernels().lanes;
  if (a.strip == 16)
    a.panel_vectors = kWideVectors;
  else
    a.panel_vectors =
        plan::strip_plan(shape.images * shape.positions() + 1, a.padded, a.strip, lanes, caches())
            .panel_vectors;
  const std::vector<uint8_t> used = a.narrow
                                        ? used_columns<uint16_t>(weight.columns, a.bk, a.padded)
                                        : used_columns<int32_t>(weight.columns, a.bk, a.padded);
  const int64_t tiles = ceil_div(a.out_features, 16);
  return conv2d(x, shape,
                {int64_t{a.panel_vectors} * lanes, a.padded, false, tiles, false, run_strips, &a},
                used.data());
}

Tensor block_conv2d(Tensor x, Tensor values, Tensor row_ptr, Tensor col_idx,
                    std::optional<Tensor> bias, int64_t out_channels, int64_t in_channels,
                    std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
                    std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t bn,
                    int64_t bk, std::string activation, std::string layout,
                    std::optional<Tensor> scale) {
  const ConvShape shape =
      conv_shape(x, {out_channels, in_channels, kernel_size, stride, padding, dilation});
  check_stored(values, scale, x);
  if (is_linear(shape, x))
    return images_view(block_linear(tokens_view(x), values, row_ptr, col_idx, bias, out_channels,
                                    in_channels, bn, bk, activation, layout, scale));
  const BlockStrips strips =
      block_strips({values, row_ptr, col_idx}, {out_channels, shape.columns()}, bn, bk, layout);
  StripArgs args = strips.args;
  args.epilogue = epilogue_of(bias, scale, x, out_channels, activation);
  return strip_conv2d(x, shape, strips.weight, args);
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("block_conv2d", TORCH_BOX(&evoprune::binding::block_conv2d));
}
