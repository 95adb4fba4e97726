// evoprune::block_linear and its backward products on CUDA: checks and allocation. The kernels are
// in cuda/block_linear.h; they copy 16 bytes at a time, so rows that are not aligned to that are
// copied once, padded with zeros.
#include "cuda/block_linear.h"

#include <bit>

#include "ops_cuda/linear.h"

namespace evoprune::binding_cuda {

namespace {

// The most columns of a row: a tile of 128 rows of f32 is addressed by 32 bits.
constexpr int64_t kMostColumns = int64_t{1} << 22;

bool is_aligned(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
}

// Contiguous [..., columns], columns padded to 16 bytes, aligned to 16 bytes.
Tensor aligned_rows(const Tensor& t) {
  const int64_t columns = t.size(t.dim() - 1), wide = 16 / t.element_size();
  const int64_t padding = cuda::ceil_div(columns, wide) * wide - columns;
  Tensor rows = torch::stable::contiguous(t);
  if (padding == 0) return is_aligned(rows) ? rows : torch::stable::clone(rows);
  const int64_t pads[] = {0, padding};
  return torch::stable::pad(rows, {pads, 2});
}

void check_columns(const Tensor& t, const char* what) {
  STD_TORCH_CHECK(t.dim() >= 1, "expected ", what, " of 1 dimension or more, got 0");
  STD_TORCH_CHECK(t.size(t.dim() - 1) <= kMostColumns, "expected at most ", kMostColumns,
                  " columns of ", what, ", got ", t.size(t.dim() - 1));
}

void check_edges(int64_t bn, int64_t bk) {
  STD_TORCH_CHECK(cuda::is_block_edge(bn) && cuda::is_block_edge(bk),
                  "the CUDA kernel takes blocks with edges of 16, 32, 64 and 128, got ", bn, "x",
                  bk);
}

void check_index(const Tensor& index, int64_t count, const char* what) {
  check_dtype(index, ScalarType::Int, what);
  STD_TORCH_CHECK(index.dim() == 1 && index.size(0) == count, "expected ", what, " of ", count,
                  " entries, got ", index.dim() == 1 ? index.size(0) : -1);
  check_contiguous(index, what);
}

// The blocks that are kept, and the index of their rows (dX: of their columns).
struct Blocks {
  const Tensor &values, &row_ptr, &col_idx;
  int64_t bn, bk;
};

void check_blocks(const Blocks& b, const Tensor& x, int64_t block_rows) {
  check_edges(b.bn, b.bk);
  STD_TORCH_CHECK(b.values.scalar_type() == x.scalar_type(), "the CUDA kernel takes values of the ",
                  "dtype of x, ", torch::headeronly::toString(x.scalar_type()), ", got ",
                  torch::headeronly::toString(b.values.scalar_type()));
  check_size(b.values, 1, b.bn, "values.size(1)");
  check_size(b.values, 2, b.bk, "values.size(2)");
  check_contiguous(b.values, "values");
  check_index(b.row_ptr, block_rows + 1, "row_ptr");
  check_index(b.col_idx, b.values.size(0), "col_idx");
}

}  // namespace

Tensor block_linear(Tensor x, Tensor values, Tensor row_ptr, Tensor col_idx,
                    std::optional<Tensor> bias, int64_t out_features, int64_t in_features,
                    int64_t bn, int64_t bk, std::string activation, std::string layout,
                    std::optional<Tensor> scale) {
  check_layout(layout, "canonical");
  STD_TORCH_CHECK(!scale.has_value(), "the CUDA kernel takes no scale, got one of ", scale->numel(),
                  " entries");
  check_columns(x, "x");
  check_size(x, x.dim() - 1, in_features, "x.size(-1)");
  const DType dtype = kernel_dtype(x, "x");
  check_edges(bn, bk);
  check_blocks({values, row_ptr, col_idx, bn, bk}, x, cuda::ceil_div(out_features, bn));
  const cuda::Epilogue epilogue = epilogue_of(bias, scale, out_features, activation);
  Call call(x, {&values, &row_ptr, &col_idx});
  Tensor y = new_output(x, out_features);
  if (y.numel() == 0) return y;
  x = aligned_rows(x);
  if (!is_aligned(values)) values = torch::stable::clone(values);
  cuda::block_linear({input(x), input(values), input<int32_t>(row_ptr), input<int32_t>(col_idx),
                      nullptr, output(y), dtype, count_tokens(x), out_features, x.size(x.dim() - 1),
                      call.limits().processors, static_cast<int>(bn), static_cast<int>(bk),
                      std::countr_zero(static_cast<uint32_t>(bk)), epilogue},
                     call.stream());
  return y;
}

Tensor block_linear_dx(Tensor grad, Tensor values, Tensor col_ptr, Tensor row_idx, Tensor order,
                       int64_t out_features, int64_t in_features, int64_t bn, int64_t bk) {
  check_columns(grad, "grad");
  check_size(grad, grad.dim() - 1, out_features, "grad.size(-1)");
  const DType dtype = kernel_dtype(grad, "grad");
  check_edges(bn, bk);
  check_blocks({values, col_ptr, row_idx, bn, bk}, grad, cuda::ceil_div(in_features, bk));
  check_index(order, values.size(0), "order");
  Call call(grad, {&values, &col_ptr, &row_idx, &order});
  Tensor dx = new_output(grad, in_features);
  if (dx.numel() == 0) return dx;
  grad = aligned_rows(grad);
  if (!is_aligned(values)) values = torch::stable::clone(values);
  cuda::block_linear_dx(
      {input(grad), input(values), input<int32_t>(col_ptr), input<int32_t>(row_idx),
       input<int32_t>(order), output(dx), dtype, count_tokens(grad), in_features,
       grad.size(grad.dim() - 1), call.limits().processors, static_cast<int>(bk),
       static_cast<int>(bn), std::countr_zero(static_cast<uint32_t>(bn)), cuda::Epilogue{}},
      call.stream());
  return dx;
}

Tensor block_linear_dw(Tensor grad, Tensor x, Tensor row_idx, Tensor col_idx, int64_t bn,
                       int64_t bk) {
  check_columns(grad, "grad");
  check_columns(x, "x");
  const DType dtype = kernel_dtype(grad, "grad");
  check_dtype(x, grad.scalar_type(), "x");
  const int64_t tokens = count_tokens(grad), count = row_idx.numel();
  STD_TORCH_CHECK(count_tokens(x) == tokens, "expected x of ", tokens, " tokens, got ",
                  count_tokens(x));
  check_edges(bn, bk);
  check_index(row_idx, count, "row_idx");
  check_index(col_idx, count, "col_idx");
  Call call(grad, {&x, &row_idx, &col_idx});
  Tensor values = empty_like(grad, {count, bn, bk}, grad.scalar_type());
  if (count == 0) return values;
  grad = aligned_rows(grad);
  x = aligned_rows(x);
  const cuda::BlockGradArgs args{input(grad),
                                 input(x),
                                 input<int32_t>(row_idx),
                                 input<int32_t>(col_idx),
                                 output(values),
                                 dtype,
                                 tokens,
                                 grad.size(grad.dim() - 1),
                                 x.size(x.dim() - 1),
                                 count,
                                 static_cast<int>(bn),
                                 static_cast<int>(bk)};
  const int64_t bytes = cuda::block_linear_dw_workspace(args, call.limits());
  Tensor workspace = empty_like(x, {bytes}, ScalarType::Byte);
  cuda::block_linear_dw(args, call.limits(), output(workspace), call.stream());
  return values;
}

}  // namespace evoprune::binding_cuda

EVOPRUNE_CUDA_LIBRARY(m) {
  m.impl("block_linear", TORCH_BOX(&evoprune::binding_cuda::block_linear));
  m.impl("block_linear_dx", TORCH_BOX(&evoprune::binding_cuda::block_linear_dx));
  m.impl("block_linear_dw", TORCH_BOX(&evoprune::binding_cuda::block_linear_dw));
}
