// Selection for transposable 2:4: 4 x 4 scores -> the best mask that is 2:4 along rows and columns.
//
//   scores   1 9 8 0    rows: two of four, by the numbers of       0  x x . .     3  x . . x
//            7 0 1 9    these six choices                          1  x . x .     4  . x . x
//            9 1 0 8                                               2  . x x .     5  . . x x
//            0 7 9 1
//   kept     . x x .    pattern: the choices of its rows 2, 3, 3, 2. All patterns whose columns
//            x . . x    have two each, in ascending order of these four digits, are numbered
//            x . . x    0 .. 89.
//            . x x .
//
// The sum of a pattern is (row 0 + row 1) + (row 2 + row 3) in float32, a row being its left score
// plus its right one. The highest sum wins, ties: the lowest number. NaN counts as -inf; a sum that
// is NaN (of +inf and -inf) counts as -inf too.
//
// Torch-free, host and device. Source: Hubara et al., "Accelerated Sparse Neural Training: A Provable
// and Efficient Method to Find N:M Transposable Masks", NeurIPS 2021; all patterns tried as in Hu et
// al., "Accelerating Transformer Pre-training with 2:4 Sparsity", ICML 2024 (arXiv 2404.01847).
#pragma once

#include <cstdint>
#include <utility>

#include "core/host_device.h"

namespace evoprune::select {

inline constexpr int kTransposable = 90;

struct TransposablePattern {
  uint16_t kept;        // bit 4 r + c
  uint8_t top, bottom;  // 6 * choice + choice of rows 0 and 1, of rows 2 and 3
};
struct TransposableTable {
  TransposablePattern at[kTransposable];
};

inline constexpr TransposableTable kTransposableTable = [] {
  constexpr int choices[6] = {0b0011, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100};  // bit c: column c
  TransposableTable table{};
  int found = 0;
  for (int number = 0; number < 6 * 6 * 6 * 6; ++number) {
    const int top = number / 36, bottom = number % 36;
    const int rows[4] = {choices[top / 6], choices[top % 6], choices[bottom / 6],
                         choices[bottom % 6]};
    bool two_each = true;
    for (int c = 0; c < 4; ++c) {
      int kept = 0;
      for (int r = 0; r < 4; ++r) kept += rows[r] >> c & 1;
      two_each = two_each && kept == 2;
    }
    if (!two_each) continue;
    const int bits = rows[0] | rows[1] << 4 | rows[2] << 8 | rows[3] << 12;
    table.at[found++] = {static_cast<uint16_t>(bits), static_cast<uint8_t>(top),
                         static_cast<uint8_t>(bottom)};
  }
  return table;
}();
static_assert(kTransposableTable.at[kTransposable - 1].kept == 0x33cc, "all 90 are found");

// The sums of two rows, for each choice of the upper and of the lower one.
EVOPRUNE_HD void transposable_rows(const float (&upper)[4], const float (&lower)[4],
                                   float (&sums)[36]) {
  const float u[6] = {upper[0] + upper[1], upper[0] + upper[2], upper[1] + upper[2],
                      upper[0] + upper[3], upper[1] + upper[3], upper[2] + upper[3]};
  const float l[6] = {lower[0] + lower[1], lower[0] + lower[2], lower[1] + lower[2],
                      lower[0] + lower[3], lower[1] + lower[3], lower[2] + lower[3]};
  for (int i = 0; i < 6; ++i)
    for (int j = 0; j < 6; ++j) sums[6 * i + j] = u[i] + l[j];
}

template <int kPattern>
EVOPRUNE_HD void transposable_try(const float (&top)[36], const float (&bottom)[36], float& best,
                                  uint32_t& kept) {
  constexpr TransposablePattern pattern = kTransposableTable.at[kPattern];
  const float sum = top[pattern.top] + bottom[pattern.bottom];
  if (sum > best) {
    best = sum;
    kept = pattern.kept;
  }
}

template <int... kPatterns>
EVOPRUNE_HD uint32_t transposable_best(const float (&top)[36], const float (&bottom)[36],
                                       std::integer_sequence<int, kPatterns...>) {
  float best = -__builtin_inff();
  uint32_t kept = kTransposableTable.at[0].kept;
  (transposable_try<kPatterns>(top, bottom, best, kept), ...);
  return kept;
}

// Bit 4 r + c is set when score [r][c] is kept.
EVOPRUNE_HD uint32_t transposable_tile(float (&scores)[4][4]) {
  for (int i = 0; i < 16; ++i) {
    float& score = scores[i / 4][i % 4];
    score = score != score ? -__builtin_inff() : score;
  }
  float top[36], bottom[36];
  transposable_rows(scores[0], scores[1], top);
  transposable_rows(scores[2], scores[3], bottom);
  return transposable_best(top, bottom, std::make_integer_sequence<int, kTransposable>{});
}

}  // namespace evoprune::select
