// block:RxC: the kept blocks, row of blocks by row of blocks.
//
//   dense   a  b |  .  . | c        values  [a b; d e] [c 0; f 0] [g 0; 0 h]    [count, bn, bk]
//           d  e |  .  . | f        col_idx     0          2          1         increasing in a row
//           .  . |  g  . | .        row_ptr 0 2 3                               [ceil(N / bn) + 1]
//           .  . |  .  h | .
//
// A block is kept when its mask keeps any entry; what the mask removes inside it, and what lies
// beyond the weight's edge, is 0.
#include <algorithm>

#include "native/formats.h"

namespace evoprune::native {

void check_edges(int64_t bn, int64_t bk) {
  if (bn < 1 || bn > kMaxEdge || bk < 1 || bk > kMaxEdge)
    fail("expected block edges from 1 to " + str(kMaxEdge) + ", got " + str(bn) + "x" + str(bk));
}

void check_row_ptr(const int32_t* row_ptr, int64_t rows, int64_t count) {
  expect(row_ptr[0], 0, "row_ptr[0]");
  for (int64_t row = 0; row < rows; ++row)
    if (row_ptr[row + 1] < row_ptr[row])
      fail("row_ptr falls from " + str(row_ptr[row]) + " to " + str(row_ptr[row + 1]) + " at row " +
           str(row));
  expect(row_ptr[rows], count, "row_ptr[" + str(rows) + "]");
}

template <typename Word>
Block<Word> block_pack(const Dense<Word>& weight, int64_t bn, int64_t bk) {
  check_edges(bn, bk);
  Block<Word> packed;
  packed.row_ptr.push_back(0);
  for (int64_t top = 0; top < weight.rows; top += bn) {
    for (int64_t left = 0; left < weight.columns; left += bk) {
      bool any = false;
      std::vector<Word> block;
      for (int64_t r = top; r < top + bn; ++r) {
        for (int64_t c = left; c < left + bk; ++c) {
          const bool inside = r < weight.rows && c < weight.columns;
          any = any || (inside && weight.kept(r, c));
          block.push_back(inside ? weight.stored(r, c) : Word{0});
        }
      }
      if (!any) continue;
      packed.values.insert(packed.values.end(), block.begin(), block.end());
      packed.col_idx.push_back(static_cast<int32_t>(left / bk));
    }
    packed.row_ptr.push_back(static_cast<int32_t>(packed.col_idx.size()));
  }
  return packed;
}

template <typename Word>
std::vector<Word> block_unpack(const BlockView<Word>& packed, int64_t rows, int64_t columns,
                               int64_t bn, int64_t bk) {
  check_edges(bn, bk);
  check_matrix(rows, columns);
  const int64_t block_rows = ceil_div(rows, bn), block_columns = ceil_div(columns, bk);
  expect(packed.pointers, block_rows + 1, "length of row_ptr");
  check_row_ptr(packed.row_ptr, block_rows, packed.count);
  std::vector<Word> dense(static_cast<size_t>(rows * columns), Word{0});
  for (int64_t row = 0; row < block_rows; ++row) {
    int64_t before = -1;
    for (int64_t at = packed.row_ptr[row]; at < packed.row_ptr[row + 1]; ++at) {
      const int64_t column = packed.col_idx[at];
      if (column < 0 || column >= block_columns)
        fail("col_idx[" + str(at) + "]: expected 0 to " + str(block_columns - 1) + ", got " +
             str(column));
      if (column <= before)
        fail("col_idx does not increase within block row " + str(row) + ": " + str(before) + ", " +
             str(column));
      before = column;
      for (int64_t i = 0; i < bn * bk; ++i) {
        const Word value = packed.values[at * bn * bk + i];
        const int64_t r = row * bn + i / bk, c = column * bk + i % bk;
        if (r < rows && c < columns) {
          dense[static_cast<size_t>(r * columns + c)] = value;
        } else if (!Dense<Word>::zero(value)) {
          fail("values beyond the edge of the " + str(rows) + "x" + str(columns) +
               " weight are not 0: block " + str(at));
        }
      }
    }
  }
  return dense;
}

template Block<uint32_t> block_pack(const Dense<uint32_t>&, int64_t, int64_t);
template Block<uint16_t> block_pack(const Dense<uint16_t>&, int64_t, int64_t);
template std::vector<uint32_t> block_unpack(const BlockView<uint32_t>&, int64_t, int64_t, int64_t,
                                            int64_t);
template std::vector<uint16_t> block_unpack(const BlockView<uint16_t>&, int64_t, int64_t, int64_t,
                                            int64_t);

}  // namespace evoprune::native
