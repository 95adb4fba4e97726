// evoprune::nm_linear on the CPU: checks, allocation, threads. The kernel is in cpu/nm_linear.cpp.
#include "ops/nm.h"
#include "ops/strips.h"

namespace evoprune::binding {

namespace {

void check_prepared(const Tensor& t, int64_t tiles, int64_t middle, const char* what) {
  STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == tiles && t.size(1) == middle && t.size(2) == kNmTile,
                  "expected prepared ", what, " of shape [", tiles, ", ", middle, ", ", kNmTile,
                  "], got ", t.dim(), " dimensions [", t.dim() > 0 ? t.size(0) : -1, ", ",
                  t.dim() > 1 ? t.size(1) : -1, ", ", t.dim() > 2 ? t.size(2) : -1, "]");
  check_contiguous(t, what);
}

int64_t tiles_of(const NmLinearArgs& a) {
  return (a.rows + kNmTile - 1) / kNmTile;
}

// Token `first` of x or y, both [tokens, columns].
template <typename Pointer>
Pointer token_of(Pointer data, DType dtype, int64_t first, int64_t columns) {
  return data + first * columns * (dtype == DType::f32 ? 4 : 2);
}

// How many of the tokens go in lanes (cpu/nm_linear_tokens.cpp): whole panels. Depends on sizes
// alone.
int64_t tokens_in_lanes(int64_t tokens, int n, int m) {
  return m == 4 && n <= 2 ? tokens - tokens % kNmTokenPanel : 0;
}

void many_tokens(const Tensor& x, NmLinearArgs args, int64_t tokens, const Tensor& y) {
  const int64_t columns = x.size(x.dim() - 1), padded = args.slots / args.n * args.m;
  const int64_t panels = tokens / kNmTokenPanel;
  const int64_t sizes[] = {panels, padded, kNmTokenPanel};
  Tensor packed = torch::stable::new_empty(x, {sizes, 3}, ScalarType::Float);
  float* out = static_cast<float*>(packed.mutable_data_ptr());
  const int vectors = kNmTokenPanel / kernels().lanes;
  const PanelArgs pack{x.const_data_ptr(),   out, tokens, columns, padded, vectors,
                       args.epilogue.y_dtype};
  run(kernels().pack_panels, pack, panels, 1);
  args.x = out;
  args.panels = true;
  args.tokens = tokens;
  args.x_stride = padded;
  args.y = y.mutable_data_ptr();
  run(kernels().nm_linear_tokens, args, panels * tiles_of(args), 1 + 1024 / (args.slots + 1));
}

void few_tokens(const Tensor& x, NmLinearArgs args, int64_t first, int64_t tokens,
                const Tensor& y) {
  const int64_t columns = x.size(x.dim() - 1);
  const void* from =
      token_of(static_cast<const char*>(x.const_data_ptr()), args.epilogue.y_dtype, first, columns);
  const int64_t last_group = args.slots == 0 ? 0 : (args.slots - 1) / args.n * args.m;
  const int64_t readable = args.slots == 0 ? 0 : last_group + nm_window(args.m);
  // panels for the patterns whose kernel reads them; copied rows where padding is needed
  const int panel = args.m == 4 && args.n <= 2 && tokens >= kNmPanel ? kNmPanel : 1;
  const int64_t stride = (std::max(readable, columns) + 3) / 4 * 4;
  const bool as_it_is = panel == 1 && args.epilogue.y_dtype == DType::f32 && readable <= columns;
  const int64_t panels = (tokens + panel - 1) / panel;
  const int64_t sizes[] = {as_it_is ? 0 : panels * panel * stride};
  Tensor packed = x;
  if (!as_it_is) {
    packed = torch::stable::new_empty(x, {sizes, 1}, ScalarType::Float);
    float* out = static_cast<float*>(packed.mutable_data_ptr());
    const PackRowsArgs pack{from, args.epilogue.y_dtype, tokens, columns, out, stride, panel};
    run(kernels().pack_rows, pack, panels, 1 + 32768 / (panel * stride + 1));
    from = out;
  }
  args.x = static_cast<const float*>(from);
  args.panels = panel > 1;
  args.tokens = tokens;
  args.x_stride = as_it_is ? columns : stride;
  args.token_step = args.panels ? 4 : args.x_stride;
  args.group_step = args.panels ? 4 * kNmPanel : args.m;
  args.block_tokens = std::min<int64_t>(tokens, 512);
  args.y =
      token_of(static_cast<char*>(y.mutable_data_ptr()), args.epilogue.y_dtype, first, args.rows);
  const int64_t blocks = (tokens + args.block_tokens - 1) / args.block_tokens;
  const int64_t work = std::max<int64_t>(1, args.slots * args.block_tokens);  // of a unit
  run(kernels().nm_linear, args, blocks * tiles_of(args), std::max<int64_t>(1, 16384 / work));
}

}  // namespace

namespace {

// 16 rows share their mask: strips of one column an entry, cpu/strips.h.
Tensor shared_rows(const Tensor& x, const Tensor& values, const Tensor& columns,
                   const Epilogue& epilogue, Shape shape, int n, int m) {
  const int64_t tiles = ceil_div(shape.out_features, kNmTile);
  const int64_t kept = nm_kept(shape.in_features, n, m);
  const bool narrow = nm_narrow(shape.in_features, m);
  check_prepared(values, tiles, kept, "values");
  check_matrix(columns, tiles, kept, "meta (prepared: columns)");
  check_dtype(columns, narrow ? ScalarType::Short : ScalarType::Int, "meta (prepared: columns)");
  check_contiguous(columns, "meta");
  STD_TORCH_CHECK(tiles * kept <= INT32_MAX, "more than ", INT32_MAX, " entries in strips");
  const int64_t pointers[] = {tiles + 1};
  Tensor row_ptr = torch::stable::new_empty(x, {pointers, 1}, ScalarType::Int);
  int32_t* starts = static_cast<int32_t*>(row_ptr.mutable_data_ptr());
  for (int64_t tile = 0; tile <= tiles; ++tile) starts[tile] = static_cast<int32_t>(tile * kept);
  StripArgs args{};
  args.epilogue = epilogue;
  args.strip = kNmTile;
  args.bk = 1;
  args.narrow = narrow;
  args.padded = kept / n * m;
  return strip_linear(x, {values, row_ptr, columns}, shape, args, kernels().block_linear);
}

}  // namespace

Tensor nm_linear(Tensor x, Tensor values, Tensor meta, std::optional<Tensor> bias,
                 int64_t out_features, int64_t in_features, int64_t n64, int64_t m64,
                 int64_t shared, std::string activation, std::string layout,
                 std::optional<Tensor> scale) {
  const Shape shape{out_features, in_features};
  check_nm(n64, m64);
  check_shared(shared);
  check_shape(shape);
  const int n = static_cast<int>(n64), m = static_cast<int>(m64);
  check_stored(values, scale, x);
  const Epilogue epilogue = epilogue_of(bias, scale, x, out_features, activation);
  if (!is_prepared(layout)) {
    check_matrix(values, out_features, nm_kept(in_features, n, m), "values");
    std::tie(values, meta) = nm_prepare(values, meta, n, m, shared, in_features);
  }
  STD_TORCH_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) == in_features,
                  "expected x with in_features = ", in_features, ", got ",
                  x.dim() >= 1 ? x.size(x.dim() - 1) : -1);
  if (shared > 1) return shared_rows(x, values, meta, epilogue, shape, n, m);
  const int64_t tiles = ceil_div(out_features, kNmTile);
  const int64_t slots = nm_slots(in_features, n, m);
  check_prepared(values, tiles, slots, "values");
  check_prepared(meta, tiles, nm_words(in_features, n, m), "meta");
  check_dtype(meta, ScalarType::Int, "meta");
  if (!x.is_contiguous()) x = torch::stable::contiguous(x);
  Tensor y = new_output(x, out_features);
  NmLinearArgs args{};
  args.values = values.const_data_ptr();
  args.meta = static_cast<const int32_t*>(meta.const_data_ptr());
  args.dtype = stored_dtype(values);
  args.rows = out_features;
  args.slots = slots;
  args.n = n;
  args.m = m;
  args.epilogue = epilogue;
  const int64_t tokens = count_tokens(x), in_lanes = tokens_in_lanes(tokens, n, m);
  if (in_lanes > 0) many_tokens(x, args, in_lanes, y);
  if (tokens > in_lanes) few_tokens(x, args, in_lanes, tokens - in_lanes, y);
  return y;
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("nm_linear", TORCH_BOX(&evoprune::binding::nm_linear));
}
