// evoprune::bitmask_linear on CUDA: checks and allocation. The kernel is in cuda/bitmask_linear.cu.
#include "cuda/bitmask_linear.h"

#include "ops_cuda/linear.h"

namespace evoprune::binding_cuda {

namespace {

// Shapes and dtypes. What row_ptr says is not read here: that would wait for the device. The kernel
// stays inside of the tensors whatever it says.
void check_packed(const Tensor& values, const Tensor& bits, const Tensor& row_ptr, int64_t rows,
                  int64_t columns) {
  STD_TORCH_CHECK(rows >= 0 && columns >= 0, "expected sizes of 0 or more, got ", rows, " and ",
                  columns);
  STD_TORCH_CHECK(values.dim() == 1, "expected values of 1 dimension, got ", values.dim());
  check_contiguous(values, "values");
  check_dtype(bits, ScalarType::Byte, "bits");
  STD_TORCH_CHECK(bits.dim() == 2, "expected bits of 2 dimensions, got ", bits.dim());
  check_size(bits, 0, rows, "bits.size(0)");
  check_size(bits, 1, cuda::ceil_div(columns, 8), "bits.size(1)");
  check_contiguous(bits, "bits");
  check_dtype(row_ptr, ScalarType::Int, "row_ptr");
  STD_TORCH_CHECK(row_ptr.dim() == 1, "expected row_ptr of 1 dimension, got ", row_ptr.dim());
  check_size(row_ptr, 0, rows + 1, "row_ptr.size(0)");
  check_contiguous(row_ptr, "row_ptr");
}

}  // namespace

Tensor bitmask_linear(Tensor x, Tensor values, Tensor bits, Tensor row_ptr,
                      std::optional<Tensor> bias, int64_t out_features, int64_t in_features,
                      std::string activation, std::string layout, std::optional<Tensor> scale) {
  check_layout(layout, "canonical");
  STD_TORCH_CHECK(x.dim() >= 1, "expected x of 1 dimension or more, got 0");
  check_size(x, x.dim() - 1, in_features, "x.size(-1)");
  check_packed(values, bits, row_ptr, out_features, in_features);
  const DType dtype = kernel_dtype(x, "x");
  const DType stored = stored_dtype(values, scale, dtype);
  Call call(x, {&values, &bits, &row_ptr});
  x = torch::stable::contiguous(x);
  const int64_t tokens = count_tokens(x);
  Tensor y = new_output(x, out_features);
  if (y.numel() == 0) return y;
  cuda::bitmask_linear({input(x), input(values), input<uint8_t>(bits), input<int32_t>(row_ptr),
                        output(y), dtype, stored, tokens, out_features, in_features, values.numel(),
                        epilogue_of(bias, scale, out_features, activation)},
                       call.stream());
  return y;
}

}  // namespace evoprune::binding_cuda

EVOPRUNE_CUDA_LIBRARY(m) {
  m.impl("bitmask_linear", TORCH_BOX(&evoprune::binding_cuda::bitmask_linear));
}
