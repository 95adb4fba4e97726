// The product of a weight in strips with x: panels, y, threads. Kernels: cpu/{block,bitmask}_linear.
#include "ops/strips.h"

namespace evoprune::binding {

namespace {

constexpr int64_t kPanelFloats = 32 << 10;  // 128 KB: within L2 and the pages of the first TLB
constexpr int64_t kGrainWork = 64 << 10;    // multiply-adds that are worth a thread

struct Panels {
  Tensor owner;
  const float* data;
};

// x as the kernel reads it: itself where it already is [tokens, padded] of float and needs no
// transposing.
Panels panels_of(const Tensor& x, const StripArgs& a, int64_t in_features) {
  const Tensor dense = x.is_contiguous() ? x : torch::stable::contiguous(x);
  const bool rows = a.strip == 16 || a.tokens == 1;
  if (rows && a.epilogue.y_dtype == DType::f32 && a.padded == in_features)
    return {dense, data_of<float>(dense)};
  const int64_t step = rows ? 1 : int64_t{a.panel_vectors} * kernels().lanes;
  const int64_t count = ceil_div(a.tokens, step);
  const int64_t size[] = {count * step * a.padded};
  Tensor panels = torch::stable::new_empty(dense, {size, 1}, ScalarType::Float);
  float* out = static_cast<float*>(panels.mutable_data_ptr());
  const PanelArgs args{
      dense.const_data_ptr(), out, a.tokens, in_features, a.padded, rows ? 0 : a.panel_vectors,
      a.epilogue.y_dtype};
  const int64_t work = std::max<int64_t>(1, step * a.padded);
  run(kernels().pack_panels, args, count, std::max<int64_t>(1, kGrainWork / work));
  return {panels, out};
}

}  // namespace

Tensor strip_linear(const Tensor& x, const Prepared& weight, Shape shape, StripArgs a,
                    StripKernel kernel) {
  STD_TORCH_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) == shape.in_features,
                  "expected x with in_features = ", shape.in_features, ", got ",
                  x.dim() >= 1 ? x.size(x.dim() - 1) : -1);
  a.dtype = stored_dtype(weight.values);
  a.tokens = count_tokens(x);
  a.out_features = shape.out_features;
  if (a.padded == 0) a.padded = ceil_div(shape.in_features, a.bk) * a.bk;
  Tensor y = new_output(x, shape.out_features);
  if (a.tokens == 0 || shape.out_features == 0) return y;
  const int64_t fits = kPanelFloats / std::max<int64_t>(1, a.padded * kernels().lanes);
  a.panel_vectors = static_cast<int>(std::clamp<int64_t>(fits, 2, 8));
  a.panel_vectors = std::min(a.panel_vectors, std::max(1, 8 / a.strip));
  const Panels panels = panels_of(x, a, shape.in_features);
  a.x = panels.data;
  a.y = y.mutable_data_ptr();
  a.values = weight.values.const_data_ptr();
  a.row_ptr = data_of<int32_t>(weight.row_ptr);
  a.columns = weight.columns.const_data_ptr();
  const int64_t tiles = ceil_div(shape.out_features, 16);
  const int64_t work = weight.values.numel() / tiles * a.tokens;
  run(kernel, a, tiles, std::max<int64_t>(1, kGrainWork / std::max<int64_t>(1, work)));
  return y;
}

}  // namespace evoprune::binding
