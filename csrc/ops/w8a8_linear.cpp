// evoprune::w8a8_linear on the CPU: checks, quantised x, threads. Kernels: cpu/w8a8_{quantize,linear}.
#include "ops/strips.h"

namespace evoprune::binding {

namespace {

constexpr int64_t kTile = 16, kLine = 4 * kTile;
constexpr int64_t kLineColumns = 8;         // that a line of 2:4 spans
constexpr int64_t kChunkBytes = 192 << 10;  // of quantised x at a time: it stays in L2
constexpr int64_t kFewestOfChunk = 48;      // tokens
constexpr int64_t kGrainWork = 128 << 10;   // multiply-adds that are worth a thread
constexpr int64_t kAliasBytes = 1024;       // rows this far apart share the sets of an L1 cache
constexpr int64_t kMaxTerms = INT32_MAX / (127 * 127);

struct Weight {
  Tensor values, row_ptr, columns, row_sums;
};

Picks picks_of(const std::string& name) {
  static constexpr const char* kNames[] = {"run", "strip", "row"};
  for (int i = 0; i < 3; ++i)
    if (name == kNames[i]) return static_cast<Picks>(i);
  STD_TORCH_CHECK(false, "expected picks run, strip or row, got ", name);
}

template <typename Index>
void check_range(const Tensor& columns, int64_t last) {
  const Index* p = static_cast<const Index*>(columns.const_data_ptr());
  const int64_t count = columns.numel();
  Index low = 0, high = 0;
  for (int64_t i = 0; i < count; ++i) {
    low = p[i] < low ? p[i] : low;
    high = p[i] > high ? p[i] : high;
  }
  STD_TORCH_CHECK(low >= 0 && (count == 0 || high <= last), "expected columns within 0 to ", last,
                  ", got ", low, " to ", high);
}

// Checks the prepared tensors; returns how many columns of x the kernel may read.
int64_t check_weight(const Weight& w, Shape shape, Picks picks) {
  const int64_t strips = ceil_div(shape.out_features, kTile), k = shape.in_features;
  STD_TORCH_CHECK(k <= kMaxTerms, "expected in_features up to ", kMaxTerms,
                  ", whose sums fit int32, got ", k);
  check_dtype(w.values, ScalarType::Char, "values");
  STD_TORCH_CHECK(w.values.dim() == 4 && w.values.size(1) >= 1 && w.values.size(2) == kTile &&
                      w.values.size(3) == 4,
                  "expected prepared values [entries, lines, 16, 4], got ", w.values.dim(),
                  " dimensions [.., ", w.values.dim() > 1 ? w.values.size(1) : -1, ", ..]");
  check_contiguous(w.values, "values");
  const int64_t entries = w.values.size(0), lines = w.values.size(1);
  check_row_ptr(w.row_ptr, strips, entries);
  check_dtype(w.row_sums, ScalarType::Int, "row_sums");
  check_size(w.row_sums, 0, strips * kTile, "row_sums.size(0)");
  check_contiguous(w.row_sums, "row_sums");
  check_contiguous(w.columns, "columns");
  if (picks == Picks::run) {
    check_dtype(w.columns, ScalarType::Int, "columns");
    STD_TORCH_CHECK(w.columns.dim() == 1, "expected columns of 1 dimension, got ", w.columns.dim());
    check_size(w.columns, 0, entries, "columns.size(0)");
    const int64_t padded = ceil_div(k, 4 * lines) * 4 * lines;
    check_range<int32_t>(w.columns, padded - 4 * lines);
    return padded;
  }
  STD_TORCH_CHECK(lines == 1, "expected prepared values [entries, 1, 16, 4], got [.., ", lines,
                  ", ..]");
  STD_TORCH_CHECK(w.columns.dim() == 2, "expected columns of 2 dimensions, got ", w.columns.dim());
  if (picks == Picks::strip) {
    check_size(w.columns, 0, entries, "columns.size(0)");
    check_size(w.columns, 1, 4, "columns.size(1)");
    if (w.columns.scalar_type() == ScalarType::Short) {
      check_range<uint16_t>(w.columns, k - 1);
    } else {
      check_dtype(w.columns, ScalarType::Int, "columns");
      check_range<int32_t>(w.columns, k - 1);
    }
    return k;
  }
  check_dtype(w.columns, ScalarType::Int, "columns");
  const int64_t of_strip = ceil_div(k, 4 * kLineColumns) * 4;
  const int32_t* row_ptr = data_of<int32_t>(w.row_ptr);
  for (int64_t s = 0; s <= strips; ++s)
    STD_TORCH_CHECK(row_ptr[s] == s * of_strip, "row_ptr[", s, "]: expected ", s * of_strip,
                    ", got ", row_ptr[s]);
  check_size(w.columns, 0, entries / 4, "columns.size(0)");
  check_size(w.columns, 1, kTile, "columns.size(1)");
  return of_strip * kLineColumns;
}

// x in chunks of tokens: quantised into a buffer that stays in L2, then multiplied.
void in_chunks(const Tensor& x, W8a8Args a, int64_t in_features, int64_t values) {
  const int64_t tokens = a.tokens, element = a.epilogue.y_dtype == DType::f32 ? 4 : 2;
  const int64_t fit = std::max(kFewestOfChunk, kChunkBytes / std::max<int64_t>(1, a.x_stride));
  const int64_t chunk = ceil_div(std::min(tokens, fit), a.panel) * a.panel;
  const int64_t sizes[] = {chunk * a.x_stride * (a.panel > 1 ? 2 : 1)}, scales[] = {chunk};
  Tensor buffer = torch::stable::new_empty(x, {sizes, 1}, ScalarType::Char);
  Tensor scale = torch::stable::new_empty(x, {scales, 1}, ScalarType::Float);
  int8_t* out = static_cast<int8_t*>(buffer.mutable_data_ptr());
  float* x_scale = static_cast<float*>(scale.mutable_data_ptr());
  const char* from = static_cast<const char*>(x.const_data_ptr());
  char* y = static_cast<char*>(a.y);
  a.x = out;
  a.x_scale = x_scale;
  for (int64_t first = 0; first < tokens; first += chunk) {
    a.tokens = std::min(chunk, tokens - first);
    a.y = y + first * a.out_features * element;
    const QuantizeArgs quantize{from + first * in_features * element,
                                a.epilogue.y_dtype,
                                a.tokens,
                                in_features,
                                out,
                                out + chunk * a.x_stride,
                                a.x_stride,
                                a.panel,
                                x_scale};
    run(kernels().w8a8_quantize, quantize, ceil_div(a.tokens, a.panel),
        std::max<int64_t>(1, kGrainWork / 16 / std::max<int64_t>(1, a.panel * a.x_stride)));
    const int64_t strips = ceil_div(a.out_features, kTile), work = values / strips * a.tokens;
    run(kernels().w8a8_linear, a, strips,
        std::max<int64_t>(1, kGrainWork / std::max<int64_t>(1, work)));
  }
}

}  // namespace

Tensor w8a8_linear(Tensor x, Tensor values, Tensor row_ptr, Tensor columns, Tensor row_sums,
                   std::optional<Tensor> bias, int64_t out_features, int64_t in_features,
                   std::string picks, std::string activation, Tensor scale) {
  const Shape shape{out_features, in_features};
  check_shape(shape);
  W8a8Args args{};
  args.picks = picks_of(picks);
  const Weight weight{values, row_ptr, columns, row_sums};
  const int64_t padded = check_weight(weight, shape, args.picks);
  std::optional<Tensor> of_rows = scale;
  args.epilogue = epilogue_of(bias, of_rows, x, out_features, activation);
  STD_TORCH_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) == in_features,
                  "expected x with in_features = ", in_features, ", got ",
                  x.dim() >= 1 ? x.size(x.dim() - 1) : -1);
  args.tokens = count_tokens(x);
  Tensor y = new_output(x, out_features);
  if (args.tokens == 0 || out_features == 0) return y;
  const Tensor dense = x.is_contiguous() ? x : torch::stable::contiguous(x);
  const bool panels = args.picks == Picks::strip && args.tokens > 1;
  args.panel = panels ? kW8a8Panel : 1;
  args.x_stride = padded;
  if (!panels && args.tokens > 1 && padded % kAliasBytes == 0) args.x_stride += kLine;
  args.values = data_of<int8_t>(values);
  args.row_ptr = data_of<int32_t>(row_ptr);
  args.columns = columns.const_data_ptr();
  args.narrow = columns.scalar_type() == ScalarType::Short;
  args.row_sums = data_of<int32_t>(row_sums);
  args.out_features = out_features;
  args.lines = values.size(1);
  args.y = y.mutable_data_ptr();
  in_chunks(dense, args, in_features, values.numel());
  return y;
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("w8a8_linear", TORCH_BOX(&evoprune::binding::w8a8_linear));
}
