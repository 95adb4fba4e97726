// nm_pack, nm_unpack: dense weight and mask <-> the canonical nm tensors.
//
//   values[r, g*n + i] = weight[r, g*m + index(r, g, i)]      index increasing in i
//
//   dense  .  a  .  b  |  c  .  .  .         kept, then the lowest free places until there are n
//   index     1     3  |  0  1
//   values    a     b  |  c  0               -0.0 is stored as +0.0
//
// The format is drawn in evoprune_kernels/formats/nm.py. Work unit: a row. Exact. A group that
// keeps more than n is reported in `over_full` (the caller refuses it).
#include "core/nm_layout.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace evoprune::EVOPRUNE_ISA {

namespace {

EVOPRUNE_INLINE float positive_zero(float x) {
  return x + 0.0f;
}
EVOPRUNE_INLINE bf16 positive_zero(bf16 x) {
  return x.bits == 0x8000 ? bf16{0} : x;
}

// The kept places of a group as bits, filled up with the lowest free ones.
uint32_t fill_up(uint32_t kept, int count, int n) {
  for (int i = 0; count < n; ++i) {
    const uint32_t bit = uint32_t{1} << i;
    count += (kept & bit) == 0;
    kept |= bit;
  }
  return kept;
}

template <typename T>
void pack_row(const NmPackArgs& a, int64_t row) {
  const T* weight = static_cast<const T*>(a.weight) + row * a.columns;
  const uint8_t* mask = a.mask + row * a.columns;
  T* values = static_cast<T*>(a.values) + row * a.kept;
  uint8_t* meta = a.meta + row * a.meta_bytes;
  const int bits = nm_canonical_bits(a.m);
  a.over_full[row] = -1;
  if (a.columns == 0) return;  // the tensors may have no memory at all
  std::memset(meta, 0, static_cast<size_t>(a.meta_bytes));
  int64_t slot = 0;
  for (int64_t c = 0; c < a.columns; c += a.m) {
    const int width = static_cast<int>(a.columns - c < a.m ? a.columns - c : a.m);
    uint32_t kept = 0;
    for (int i = 0; i < width; ++i) kept |= static_cast<uint32_t>(mask[c + i] != 0) << i;
    const int count = __builtin_popcount(kept);
    if (count > a.n) {
      a.over_full[row] = c;
      return;
    }
    for (uint32_t left = fill_up(kept, count, a.n); left != 0; left &= left - 1, ++slot) {
      const int i = __builtin_ctz(left);
      values[slot] = (kept >> i) & 1 ? positive_zero(weight[c + i]) : T{};
      const int64_t first = slot * bits;
      const uint32_t placed = static_cast<uint32_t>(i) << (first % 8);
      meta[first / 8] |= static_cast<uint8_t>(placed);
      if (placed > 0xff) meta[first / 8 + 1] |= static_cast<uint8_t>(placed >> 8);
    }
  }
}

template <typename T>
void unpack_row(const NmUnpackArgs& a, int64_t row) {
  if (a.columns == 0) return;
  const T* values = static_cast<const T*>(a.values) + row * a.kept;
  const uint8_t* meta = a.meta + row * a.meta_bytes;
  T* dense = static_cast<T*>(a.dense) + row * a.columns;
  const int bits = nm_canonical_bits(a.m);
  std::memset(dense, 0, static_cast<size_t>(a.columns) * sizeof(T));
  int64_t start = 0, slot = 0;
  for (; slot < a.kept; start += a.m)
    for (int i = 0; i < a.n; ++i, ++slot) {
      const int64_t column = start + nm_read_index(meta, slot, bits);
      if (column < a.columns) dense[column] = values[slot];
    }
}

}  // namespace

void nm_pack(const NmPackArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    a.dtype == DType::bf16 ? pack_row<bf16>(a, row) : pack_row<float>(a, row);
}

void nm_unpack(const NmUnpackArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    a.dtype == DType::bf16 ? unpack_row<bf16>(a, row) : unpack_row<float>(a, row);
}

}  // namespace evoprune::EVOPRUNE_ISA
