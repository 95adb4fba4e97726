// The product of a weight in strips with x: panels, y, threads. Kernels: cpu/{block,bitmask}_linear.
#include "ops/strips.h"

#include "core/plan.h"

namespace evoprune::binding {

namespace {

constexpr int64_t kGrainWork = 64 << 10;  // multiply-adds that are worth a thread

// The product with a.x as the kernel reads it.
void run_product(const StripArgs& a, StripKernel kernel, int64_t values) {
  const int64_t tiles = ceil_div(a.out_features, 16), work = values / tiles * a.tokens;
  run(kernel, a, tiles, std::max<int64_t>(1, kGrainWork / std::max<int64_t>(1, work)));
}

// x of a.tokens tokens -> what the kernel reads, at `out`.
void pack(const void* x, int64_t in_features, const StripArgs& a, bool rows, float* out) {
  const int64_t step = rows ? 1 : int64_t{a.panel_vectors} * kernels().lanes;
  const PanelArgs args{
      x,    out, a.tokens, in_features, a.padded, rows ? 0 : a.panel_vectors, a.epilogue.y_dtype,
      false};
  const int64_t work = std::max<int64_t>(1, step * a.padded);
  run(kernels().pack_panels, args, ceil_div(a.tokens, step),
      std::max<int64_t>(1, kGrainWork / work));
}

// The product in chunks of tokens whose packed x (transposed, padded or widened) stays in L2: packed
// all at once it would go to memory and back, through pages not touched before.
void in_chunks(const Tensor& x, StripArgs a, StripKernel kernel, const plan::StripPlan& plan,
               int64_t values) {
  const int64_t in_features = x.size(x.dim() - 1), tokens = a.tokens, chunk = plan.chunk_tokens;
  const int64_t element = a.epilogue.y_dtype == DType::f32 ? 4 : 2;  // of x and y
  const int64_t step = plan.rows ? 1 : int64_t{a.panel_vectors} * kernels().lanes;
  const int64_t size[] = {std::min(chunk, ceil_div(tokens, step) * step) * a.padded};
  Tensor packed = torch::stable::new_empty(x, {size, 1}, ScalarType::Float);
  float* out = static_cast<float*>(packed.mutable_data_ptr());
  const char* from = static_cast<const char*>(x.const_data_ptr());
  char* y = static_cast<char*>(a.y);
  a.x = out;
  for (int64_t token = 0; token < tokens; token += chunk) {
    a.tokens = std::min(chunk, tokens - token);
    a.y = y + token * a.out_features * element;
    const bool rows = plan.rows || a.tokens == 1;  // the kernels read a single token as it is
    pack(from + token * in_features * element, in_features, a, rows, out);
    run_product(a, kernel, values);
  }
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
  const plan::StripPlan plan =
      plan::strip_plan(a.tokens, a.padded, a.strip, kernels().lanes, caches());
  a.padded = plan.stride;
  a.panel_vectors = plan.panel_vectors;
  a.group_tokens = plan.group_tokens;
  Tensor y = new_output(x, shape.out_features);
  if (a.tokens == 0 || shape.out_features == 0) return y;
  const Tensor dense = x.is_contiguous() ? x : torch::stable::contiguous(x);
  a.y = y.mutable_data_ptr();
  a.values = weight.values.const_data_ptr();
  a.row_ptr = data_of<int32_t>(weight.row_ptr);
  a.columns = weight.columns.const_data_ptr();
  if (plan.rows && a.epilogue.y_dtype == DType::f32 && a.padded == shape.in_features) {
    a.x = data_of<float>(dense);
    run_product(a, kernel, weight.values.numel());
  } else {
    in_chunks(dense, a, kernel, plan, weight.values.numel());
  }
  return y;
}

}  // namespace evoprune::binding
