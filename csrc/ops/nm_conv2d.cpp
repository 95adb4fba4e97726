// evoprune::nm_conv2d on the CPU: an n:m weight times panels of positions.
#include "core/plan.h"
#include "ops/conv.h"
#include "ops/nm_linear.h"

namespace evoprune::binding {

namespace {

void run_nm(const void* self, const float* x, int64_t, int64_t count, void* y, Planes planes,
            int64_t begin, int64_t end) {
  NmLinearArgs args = *static_cast<const NmLinearArgs*>(self);
  args.x = x;
  args.tokens = count;
  args.y = y;
  args.planes = planes;
  kernels().nm_linear_tokens(args, begin, end);
}

}  // namespace

Tensor nm_conv2d(Tensor x, Tensor values, Tensor meta, std::optional<Tensor> bias,
                 int64_t out_channels, int64_t in_channels, std::vector<int64_t> kernel_size,
                 std::vector<int64_t> stride, std::vector<int64_t> padding,
                 std::vector<int64_t> dilation, int64_t n64, int64_t m64, int64_t shared,
                 std::string activation, std::string layout, std::optional<Tensor> scale) {
  const ConvShape shape =
      conv_shape(x, {out_channels, in_channels, kernel_size, stride, padding, dilation});
  check_nm(n64, m64);
  check_shared(shared);
  const int n = static_cast<int>(n64), m = static_cast<int>(m64);
  STD_TORCH_CHECK(shared > 1 || nm_has_panels(n, m),
                  "the convolution kernel takes 1:4, 2:4 and n:mv16, got ", n, ":", m);
  check_stored(values, scale, x);
  if (is_linear(shape, x))
    return images_view(nm_linear(tokens_view(x), values, meta, bias, out_channels, in_channels, n64,
                                 m64, shared, activation, layout, scale));
  const Epilogue epilogue = epilogue_of(bias, scale, x, out_channels, activation);
  const int64_t columns = shape.columns();
  if (!is_prepared(layout)) {
    check_matrix(values, out_channels, nm_kept(columns, n, m), "values");
    std::tie(values, meta) = nm_prepare(values, meta, n, m, shared, columns);
  }
  if (shared > 1) {
    const SharedStrips strips =
        shared_strips(x, values, meta, epilogue, {out_channels, columns}, n, m);
    return strip_conv2d(x, shape, strips.weight, strips.args);
  }
  NmLinearArgs args = nm_tiles(values, meta, epilogue, {out_channels, columns}, n, m);
  args.panels = true;
  args.x_stride = args.slots / n * m;
  args.panel_tokens =
      plan::nm_panel(shape.images * shape.positions(), plan::nm_costs(kernels().lanes));
  const int64_t tiles = ceil_div(out_channels, kNmTile);
  return conv2d(x, shape, {args.panel_tokens, args.x_stride, true, tiles, true, run_nm, &args},
                nullptr);
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("nm_conv2d", TORCH_BOX(&evoprune::binding::nm_conv2d));
}
