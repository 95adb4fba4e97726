// evoprune::block_prepare on the CPU: canonical blocks -> strips (drawn in cpu/strips.h). A copy.
#include <cstring>
#include <numeric>

#include "ops/strips.h"

namespace evoprune::binding {

namespace {

struct BlockCopy {
  int64_t bn, bk, strip;
};

// One strip of a block: rows [first, first + strip) of [bn, bk] -> [bk, strip].
template <typename T>
void copy_strip(const T* block, T* out, const BlockCopy& c, int64_t first) {
  for (int64_t r = 0; r < c.strip; ++r)
    for (int64_t k = 0; k < c.bk; ++k) out[k * c.strip + r] = block[(first + r) * c.bk + k];
}

template <typename T>
void copy_entries(const Tensor& values, Tensor& out, const int32_t* from, const int32_t* to,
                  int64_t strips, const BlockCopy& c) {
  const T* blocks = data_of<T>(values);
  T* entries = static_cast<T*>(out.mutable_data_ptr());
  const int64_t of_block = c.bn / c.strip;
  for (int64_t s = 0; s < strips; ++s)
    for (int64_t e = 0; e < to[s + 1] - to[s]; ++e)
      copy_strip(blocks + (from[s / of_block] + e) * c.bn * c.bk,
                 entries + (to[s] + e) * c.bk * c.strip, c, s % of_block * c.strip);
}

void check_columns(const int32_t* columns, int64_t count, int64_t block_columns) {
  for (int64_t e = 0; e < count; ++e)
    STD_TORCH_CHECK(columns[e] >= 0 && columns[e] < block_columns, "col_idx[", e,
                    "]: expected 0 to ", block_columns - 1, ", got ", columns[e]);
}

}  // namespace

Prepared block_prepare(const Tensor& values_in, const Tensor& row_ptr_in, const Tensor& col_idx_in,
                       Shape shape) {
  check_shape(shape);
  STD_TORCH_CHECK(values_in.dim() == 3 && values_in.size(1) > 0 && values_in.size(2) > 0,
                  "expected values [nnz, bn, bk], got ", values_in.dim(), " dimensions");
  stored_dtype(values_in);
  const Tensor values = torch::stable::contiguous(values_in);
  const Tensor row_ptr = torch::stable::contiguous(row_ptr_in);
  const Tensor col_idx = torch::stable::contiguous(col_idx_in);
  const int64_t count = values.size(0), bn = values.size(1), bk = values.size(2);
  const BlockCopy copy{bn, bk, std::gcd(bn, int64_t{16})};
  check_row_ptr(row_ptr, ceil_div(shape.out_features, bn), count);
  check_dtype(col_idx, ScalarType::Int, "col_idx");
  STD_TORCH_CHECK(col_idx.dim() == 1, "expected col_idx of 1 dimension, got ", col_idx.dim());
  check_size(col_idx, 0, count, "col_idx.size(0)");
  const int32_t* columns = data_of<int32_t>(col_idx);
  check_columns(columns, count, ceil_div(shape.in_features, bk));

  const int64_t strips = ceil_div(shape.out_features, copy.strip), of_block = bn / copy.strip;
  const int64_t pointers[] = {strips + 1};
  Tensor out_ptr = torch::stable::new_empty(row_ptr, {pointers, 1});
  const int32_t* from = data_of<int32_t>(row_ptr);
  int32_t* to = static_cast<int32_t*>(out_ptr.mutable_data_ptr());
  int64_t total = 0;
  to[0] = 0;
  for (int64_t s = 0; s < strips; ++s) {
    total += from[s / of_block + 1] - from[s / of_block];
    STD_TORCH_CHECK(total <= INT32_MAX, "more than ", INT32_MAX, " entries in strips");
    to[s + 1] = static_cast<int32_t>(total);
  }
  const int64_t sizes[] = {total, bk, copy.strip};
  Tensor out_values = torch::stable::new_empty(values, {sizes, 3});
  Tensor out_columns = torch::stable::new_empty(col_idx, {sizes, 1});
  int32_t* first = static_cast<int32_t*>(out_columns.mutable_data_ptr());
  for (int64_t s = 0; s < strips; ++s)
    for (int64_t e = 0; e < to[s + 1] - to[s]; ++e)
      first[to[s] + e] = static_cast<int32_t>(columns[from[s / of_block] + e] * bk);
  if (values.scalar_type() == ScalarType::Float)
    copy_entries<float>(values, out_values, from, to, strips, copy);
  else if (values.scalar_type() == ScalarType::BFloat16)
    copy_entries<uint16_t>(values, out_values, from, to, strips, copy);
  else
    copy_entries<uint8_t>(values, out_values, from, to, strips, copy);
  return {out_values, out_ptr, out_columns};
}

std::tuple<Tensor, Tensor, Tensor> block_prepare_op(Tensor values, Tensor row_ptr, Tensor col_idx,
                                                    int64_t out_features, int64_t in_features) {
  auto p = block_prepare(values, row_ptr, col_idx, {out_features, in_features});
  return {p.values, p.row_ptr, p.columns};
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("block_prepare", TORCH_BOX(&evoprune::binding::block_prepare_op));
}
