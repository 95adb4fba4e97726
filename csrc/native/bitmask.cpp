// bitmask: one bit a weight and the kept values, row by row.
//
//   dense   .  a  .  b  .  .  .  . |  c  .      one row, K = 10
//   bits    0x0A                      0x01      [rows, ceil(K / 8)], low bits first, spare bits 0
//   values  a  b  c                             [count], in the order of the bits
//   row_ptr 0  3                                [rows + 1]
#include "native/formats.h"

namespace evoprune::native {

template <typename Word>
Bitmask<Word> bitmask_pack(const Dense<Word>& weight) {
  const int64_t bytes = ceil_div(weight.columns, 8);
  Bitmask<Word> packed;
  packed.bits.assign(static_cast<size_t>(weight.rows * bytes), 0);
  packed.row_ptr.push_back(0);
  for (int64_t r = 0; r < weight.rows; ++r) {
    for (int64_t c = 0; c < weight.columns; ++c) {
      if (!weight.kept(r, c)) continue;
      packed.bits[static_cast<size_t>(r * bytes + c / 8)] |= static_cast<uint8_t>(1u << (c % 8));
      packed.values.push_back(weight.stored(r, c));
    }
    packed.row_ptr.push_back(static_cast<int32_t>(packed.values.size()));
  }
  return packed;
}

template <typename Word>
std::vector<Word> bitmask_unpack(const Word* values, int64_t count, const uint8_t* bits,
                                 const int32_t* row_ptr, int64_t rows, int64_t columns) {
  check_matrix(rows, columns);
  check_row_ptr(row_ptr, rows, count);
  const int64_t bytes = ceil_div(columns, 8);
  std::vector<Word> dense(static_cast<size_t>(rows * columns), Word{0});
  for (int64_t r = 0; r < rows; ++r) {
    int64_t at = row_ptr[r], set = 0;
    for (int64_t c = 0; c < bytes * 8; ++c) {
      if (((bits[r * bytes + c / 8] >> (c % 8)) & 1) == 0) continue;
      if (c >= columns)
        fail("bits of row " + str(r) + ": spare bits beyond column K = " + str(columns) +
             " are set");
      ++set;
      if (at < row_ptr[r + 1]) dense[static_cast<size_t>(r * columns + c)] = values[at++];
    }
    expect(set, row_ptr[r + 1] - row_ptr[r], "bits of row " + str(r) + " that are set");
  }
  return dense;
}

template Bitmask<uint32_t> bitmask_pack(const Dense<uint32_t>&);
template Bitmask<uint16_t> bitmask_pack(const Dense<uint16_t>&);
template std::vector<uint32_t> bitmask_unpack(const uint32_t*, int64_t, const uint8_t*,
                                              const int32_t*, int64_t, int64_t);
template std::vector<uint16_t> bitmask_unpack(const uint16_t*, int64_t, const uint8_t*,
                                              const int32_t*, int64_t, int64_t);

}  // namespace evoprune::native
