// The layouts of n:m weights: sizes of the canonical tensors and of the layout "cpu".
//
// Canonical (drawn in evoprune_kernels/formats/nm.py): one row after the other, a bit stream of
// indices. Layout "cpu": tiles of 16 rows, so that one load gives the same slot of many rows:
//
//   row r of a tile:  slot 0, 1 .. n-1 | n .. 2n-1 | ..      its kept values, group by group
//                        group 0       |  group 1
//
//   values [tiles, slots, 16]        slot s:  r0 r1 r2 .. r15         64 bytes of float, 32 of bf16
//   meta   int32 [tiles, words, 16]  word w:  r0 r1 r2 .. r15
//          a word holds the indices of the slots w*P .. w*P+P-1 of one row, low bits first
//
//   m          bits an index   P = indices a word    what reads an index
//   1 .. 4           2               16              permute of 4 floats (2:4: 8 groups a word)
//   5 .. 16          4                8              permute of 8 or 16
//   17 .. 32         8                4              permute of 32, or a load a lane
//
// Padding: slots to a multiple of P, rows to a multiple of 16; value 0, index 0. A 2:4 weight takes
// 8.5 bytes of float a group of 4 where dense takes 16. The same for all ISA levels. Torch-free.
//
// Where 16 rows share their mask (2:4v16), a tile is a strip of cpu/strips.h with one column an
// entry: values [tiles, kept, 16] as above without padded slots, columns uint16 or int32 [tiles,
// kept].
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace evoprune {

inline constexpr int kNmTile = 16;
// Tokens of a panel of x where rows lie in lanes (cpu/pack_rows.cpp).
inline constexpr int kNmPanel = 8;

inline int nm_canonical_bits(int m) {  // max(1, ceil(log2 m))
  int bits = 1;
  while ((1 << bits) < m) ++bits;
  return bits;
}
inline int64_t nm_kept(int64_t columns, int n, int m) {
  return (columns + m - 1) / m * n;
}
inline int64_t nm_meta_bytes(int64_t columns, int n, int m) {
  return (nm_kept(columns, n, m) * nm_canonical_bits(m) + 7) / 8;
}
inline int nm_field_bits(int m) {
  return m <= 4 ? 2 : m <= 16 ? 4 : 8;
}
inline int64_t nm_words(int64_t columns, int n, int m) {
  const int per_word = 32 / nm_field_bits(m);
  return (nm_kept(columns, n, m) + per_word - 1) / per_word;
}
inline int64_t nm_slots(int64_t columns, int n, int m) {
  return nm_words(columns, n, m) * (32 / nm_field_bits(m));
}
// Index `i` of a row's canonical bit stream; reads no byte beyond the stream.
EVOPRUNE_HD int32_t nm_read_index(const uint8_t* meta, int64_t i, int bits) {
  const int64_t first = i * bits;
  const uint8_t* p = meta + first / 8;
  const int shift = static_cast<int>(first % 8);
  int32_t word = p[0];
  if (shift + bits > 8) word |= p[1] << 8;
  return (word >> shift) & ((1 << bits) - 1);
}
// Whether there is a kernel with tokens in lanes (cpu/nm_linear_tokens.cpp).
inline bool nm_has_panels(int n, int m) {
  return m == 4 && n <= 2;
}
// Floats that the kernel looks at from the start of a group.
inline int nm_window(int m) {
  return m <= 4 ? 4 : m <= 8 ? 8 : m <= 16 ? 16 : 32;
}

}  // namespace evoprune
