// evoprune::nm_linear on the CPU: checks, allocation, threads. The kernel is in cpu/nm_linear.cpp.
#include "ops/nm_linear.h"

#include <atomic>

#include "core/plan.h"

namespace evoprune::binding {

namespace {

int64_t tiles_of(const NmLinearArgs& a) {
  return (a.rows + kNmTile - 1) / kNmTile;
}

// Token `first` of x or y, both [tokens, columns].
template <typename Pointer>
Pointer token_of(Pointer data, DType dtype, int64_t first, int64_t columns) {
  return data + first * columns * (dtype == DType::f32 ? 4 : 2);
}

constexpr int64_t kPlanned = -1;
std::atomic<int64_t> forced_panel{kPlanned};

plan::NmPlan plan_of(const NmLinearArgs& a, int64_t tokens) {
  const bool panels = nm_has_panels(a.n, a.m);
  if (const int64_t panel = forced_panel; panel != kPlanned && tokens > 0) {
    plan::NmPlan plan;
    plan.add({panels ? static_cast<int>(panel) : plan::kRows, tokens}, 0);
    return plan;
  }
  const int bytes = a.dtype == DType::f32 ? 4 : a.dtype == DType::bf16 ? 2 : 1;
  return plan::NmPlanner({tiles_of(a), a.slots, bytes, panels}, plan::nm_costs(kernels().lanes),
                         caches())
      .plan(tokens);
}

void many_tokens(const Tensor& x, NmLinearArgs args, int64_t first, plan::NmPart part,
                 const Tensor& y) {
  const int64_t tokens = part.tokens, width = part.panel;
  const int64_t columns = x.size(x.dim() - 1), padded = args.slots / args.n * args.m;
  const int64_t panels = ceil_div(tokens, width);
  const void* from =
      token_of(static_cast<const char*>(x.const_data_ptr()), args.epilogue.y_dtype, first, columns);
  const int64_t sizes[] = {panels, padded, width};
  Tensor packed = torch::stable::new_empty(x, {sizes, 3}, ScalarType::Float);
  float* out = static_cast<float*>(packed.mutable_data_ptr());
  const int vectors = part.panel / kernels().lanes;
  const PanelArgs pack{from, out, tokens, columns, padded, vectors, args.epilogue.y_dtype, true};
  run(kernels().pack_panels, pack, panels, 1);
  args.x = out;
  args.panels = true;
  args.tokens = tokens;
  args.x_stride = padded;
  args.panel_tokens = part.panel;
  args.y =
      token_of(static_cast<char*>(y.mutable_data_ptr()), args.epilogue.y_dtype, first, args.rows);
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
  const int panel = nm_has_panels(args.n, args.m) && tokens >= kNmPanel ? kNmPanel : 1;
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

void check_prepared(const Tensor& t, int64_t tiles, int64_t middle, const char* what) {
  STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == tiles && t.size(1) == middle && t.size(2) == kNmTile,
                  "expected prepared ", what, " of shape [", tiles, ", ", middle, ", ", kNmTile,
                  "], got ", t.dim(), " dimensions [", t.dim() > 0 ? t.size(0) : -1, ", ",
                  t.dim() > 1 ? t.size(1) : -1, ", ", t.dim() > 2 ? t.size(2) : -1, "]");
  check_contiguous(t, what);
}

SharedStrips shared_strips(const Tensor& x, const Tensor& values, const Tensor& columns,
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
  return {{values, row_ptr, columns}, args};
}

NmLinearArgs nm_tiles(const Tensor& values, const Tensor& meta, const Epilogue& epilogue,
                      Shape shape, int n, int m) {
  const int64_t tiles = ceil_div(shape.out_features, kNmTile);
  NmLinearArgs args{};
  args.slots = nm_slots(shape.in_features, n, m);
  check_prepared(values, tiles, args.slots, "values");
  check_prepared(meta, tiles, nm_words(shape.in_features, n, m), "meta");
  check_dtype(meta, ScalarType::Int, "meta");
  args.values = values.const_data_ptr();
  args.meta = static_cast<const int32_t*>(meta.const_data_ptr());
  args.dtype = stored_dtype(values);
  args.rows = shape.out_features;
  args.n = n;
  args.m = m;
  args.epilogue = epilogue;
  args.l2_bytes = caches().l2;
  args.piece_bytes = caches().l1 / 2;
  return args;
}

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
  if (shared > 1) {
    const SharedStrips strips = shared_strips(x, values, meta, epilogue, shape, n, m);
    return strip_linear(x, strips.weight, shape, strips.args, kernels().block_linear);
  }
  const NmLinearArgs args = nm_tiles(values, meta, epilogue, shape, n, m);
  if (!x.is_contiguous()) x = torch::stable::contiguous(x);
  Tensor y = new_output(x, out_features);
  const plan::NmPlan plan = plan_of(args, count_tokens(x));
  for (int64_t i = 0, first = 0; i < plan.count; first += plan.parts[i++].tokens) {
    const plan::NmPart& part = plan.parts[i];
    if (part.panel == plan::kRows)
      few_tokens(x, args, first, part.tokens, y);
    else
      many_tokens(x, args, first, part, y);
  }
  return y;
}

// For tests and for fitting costs: every token goes through panels of this many tokens (16, 32, 64),
// or 0: rows in lanes, or -1: as planned.
void force_nm_panel(int64_t panel) {
  STD_TORCH_CHECK(panel == -1 || panel == 0 || panel == 16 || panel == 32 || panel == 64,
                  "expected a panel of -1, 0, 16, 32 or 64 tokens, got ", panel);
  forced_panel = panel;
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("nm_linear", TORCH_BOX(&evoprune::binding::nm_linear));
}
STABLE_TORCH_LIBRARY_FRAGMENT(evoprune_raw, m) {
  m.def("force_nm_panel(int panel) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(evoprune_raw, CompositeExplicitAutograd, m) {
  m.impl("force_nm_panel", TORCH_BOX(&evoprune::binding::force_nm_panel));
}
