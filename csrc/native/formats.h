// The packed formats once more, as plain scalar C++ without torch: the oracle that the torch
// formats and the kernels are held to, bit by bit, and a way to read a checkpoint without torch.
//
// Written from the drawings (evoprune_kernels/formats), not from the torch code; nothing here is
// fast. Weights are words: float32 as uint32_t, bf16 as uint16_t; no arithmetic is done on them.
// A kept weight of -0.0 is stored as +0.0; NaN is a weight like any other. Every input is checked:
// std::invalid_argument (a ValueError in Python) names the place and holds both values.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace evoprune::native {

inline constexpr int64_t kMaxGroup = 32;           // m of n:m
inline constexpr int64_t kMaxEdge = 256;           // of a block
inline constexpr int64_t kMaxWeights = 1ll << 31;  // of one matrix

[[noreturn]] inline void fail(const std::string& message) {
  throw std::invalid_argument(message);
}
inline std::string str(int64_t number) {
  return std::to_string(number);
}
inline void expect(int64_t got, int64_t expected, const std::string& what) {
  if (got != expected) fail(what + ": expected " + str(expected) + ", got " + str(got));
}
inline int64_t ceil_div(int64_t a, int64_t b) {
  return a / b + (a % b != 0);
}
inline void check_matrix(int64_t rows, int64_t columns) {
  if (rows < 0 || columns < 0 || rows > kMaxWeights || columns > kMaxWeights ||
      (rows > 0 && columns > kMaxWeights / rows))
    fail("expected a matrix of at most " + str(kMaxWeights) + " weights, got " + str(rows) + "x" +
         str(columns));
}

// A dense weight and its mask (null: keep what is not zero), both [rows, columns].
template <typename Word>
struct Dense {
  const Word* words;
  const uint8_t* mask;
  int64_t rows, columns;

  static bool zero(Word word) { return static_cast<Word>(word << 1) == 0; }
  bool kept(int64_t r, int64_t c) const {
    const int64_t at = r * columns + c;
    return mask != nullptr ? mask[at] != 0 : !zero(words[at]);
  }
  Word stored(int64_t r, int64_t c) const {
    const Word word = words[r * columns + c];
    return kept(r, c) && !zero(word) ? word : Word{0};
  }
};

template <typename Word>
struct Nm {
  std::vector<Word> values;   // [rows, groups * n]
  std::vector<uint8_t> meta;  // [rows, ceil(groups * n * bits / 8)]
};
struct NmSizes {
  int64_t groups, kept, bits, meta_bytes;  // of one row
};
NmSizes nm_sizes(int64_t n, int64_t m, int64_t columns);
template <typename Word>
Nm<Word> nm_pack(const Dense<Word>& weight, int64_t n, int64_t m);
template <typename Word>
std::vector<Word> nm_unpack(const Word* values, const uint8_t* meta, int64_t rows, int64_t columns,
                            int64_t n, int64_t m);
std::vector<uint8_t> nm_select(const float* scores, int64_t rows, int64_t columns, int64_t n,
                               int64_t m);

template <typename Word>
struct Block {
  std::vector<Word> values;      // [count, bn, bk]
  std::vector<int32_t> row_ptr;  // [ceil(rows / bn) + 1]
  std::vector<int32_t> col_idx;  // [count]
};
template <typename Word>
struct BlockView {
  const Word* values;
  const int32_t *row_ptr, *col_idx;
  int64_t count, pointers;  // lengths of col_idx and row_ptr
};
void check_edges(int64_t bn, int64_t bk);
template <typename Word>
Block<Word> block_pack(const Dense<Word>& weight, int64_t bn, int64_t bk);
template <typename Word>
std::vector<Word> block_unpack(const BlockView<Word>& packed, int64_t rows, int64_t columns,
                               int64_t bn, int64_t bk);

template <typename Word>
struct Bitmask {
  std::vector<Word> values;      // [count]
  std::vector<uint8_t> bits;     // [rows, ceil(columns / 8)]
  std::vector<int32_t> row_ptr;  // [rows + 1]
};
template <typename Word>
Bitmask<Word> bitmask_pack(const Dense<Word>& weight);
template <typename Word>
std::vector<Word> bitmask_unpack(const Word* values, int64_t count, const uint8_t* bits,
                                 const int32_t* row_ptr, int64_t rows, int64_t columns);

// row_ptr [rows + 1] runs from 0 to count and never falls.
void check_row_ptr(const int32_t* row_ptr, int64_t rows, int64_t count);

}  // namespace evoprune::native
