// evoprune::bitmask_prepare on the CPU: bits -> columns (drawn in cpu/strips.h). A copy.
#include <bit>
#include <cstring>

#include "ops/strips.h"

namespace evoprune::binding {

namespace {

constexpr int64_t kNarrow = 1 << 16;  // up to this many columns an index takes 16 bits

template <typename Index>
void write_columns(const uint8_t* bits, int64_t bytes, Index* out) {
  for (int64_t byte = 0; byte < bytes; ++byte)
    for (unsigned b = bits[byte]; b != 0; b &= b - 1)
      *out++ = static_cast<Index>(byte * 8 + std::countr_zero(b));
}

// Every row holds as many bits as row_ptr says, and none beyond column K.
void check_bits(const uint8_t* bits, const int32_t* row_ptr, int64_t rows, int64_t columns) {
  const int64_t bytes = ceil_div(columns, 8);
  for (int64_t r = 0; r < rows; ++r) {
    int64_t kept = 0;
    for (int64_t b = 0; b < bytes; ++b) kept += std::popcount(bits[r * bytes + b]);
    STD_TORCH_CHECK(kept == row_ptr[r + 1] - row_ptr[r], "bits of row ", r, ": expected ",
                    row_ptr[r + 1] - row_ptr[r], " set, as row_ptr says, got ", kept);
    STD_TORCH_CHECK(columns % 8 == 0 || bits[r * bytes + bytes - 1] >> (columns % 8) == 0,
                    "bits of row ", r, ": spare bits beyond column K = ", columns, " are set");
  }
}

}  // namespace

Prepared bitmask_prepare(const Tensor& values_in, const Tensor& bits_in, const Tensor& row_ptr_in,
                         int64_t in_features) {
  STD_TORCH_CHECK(values_in.dim() == 1, "expected values of 1 dimension, got ", values_in.dim());
  STD_TORCH_CHECK(bits_in.dim() == 2, "expected bits of 2 dimensions, got ", bits_in.dim());
  STD_TORCH_CHECK(in_features >= 0, "expected in_features >= 0, got ", in_features);
  stored_dtype(values_in);
  check_dtype(bits_in, ScalarType::Byte, "bits");
  const int64_t rows = bits_in.size(0), count = values_in.size(0), bytes = ceil_div(in_features, 8);
  check_size(bits_in, 1, bytes, "bits.size(1)");
  const Tensor values = torch::stable::contiguous(values_in);
  const Tensor bits = torch::stable::contiguous(bits_in);
  const Tensor row_ptr = torch::stable::contiguous(row_ptr_in);
  check_row_ptr(row_ptr, rows, count);
  const int32_t* from = data_of<int32_t>(row_ptr);
  check_bits(data_of<uint8_t>(bits), from, rows, in_features);

  const bool narrow = in_features <= kNarrow;
  const int64_t sizes[] = {count};
  Tensor columns =
      torch::stable::new_empty(values, {sizes, 1}, narrow ? ScalarType::Short : ScalarType::Int);
  void* out = columns.mutable_data_ptr();
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* row = data_of<uint8_t>(bits) + r * bytes;
    narrow ? write_columns(row, bytes, static_cast<uint16_t*>(out) + from[r])
           : write_columns(row, bytes, static_cast<int32_t*>(out) + from[r]);
  }
  return {torch::stable::clone(values), torch::stable::clone(row_ptr), columns};
}

std::tuple<Tensor, Tensor, Tensor> bitmask_prepare_op(Tensor values, Tensor bits, Tensor row_ptr,
                                                      int64_t in_features) {
  auto p = bitmask_prepare(values, bits, row_ptr, in_features);
  return {p.values, p.columns, p.row_ptr};
}

}  // namespace evoprune::binding

STABLE_TORCH_LIBRARY_IMPL(evoprune, CPU, m) {
  m.impl("bitmask_prepare", TORCH_BOX(&evoprune::binding::bitmask_prepare_op));
}
