// nm_prepare: canonical nm tensors -> layout "cpu".
//
//   out_values[tile, s, r] = values[16 tile + r, s];  out_meta holds the indices in wider fields, or
//   the columns where 16 rows share them
//
// Layouts: core/nm_layout.h. Work unit: a tile of 16 rows. Exact; every output is written, padding
// with zeros. An index of m or more is reported in `worst` (the caller refuses it).
#include "core/nm_layout.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/stored.h"

namespace evoprune::EVOPRUNE_ISA {

// The kept values of a tile, slot by slot.
template <typename T>
static void lay_out_values(const NmPrepareArgs& a, int64_t tile) {
  T* out = static_cast<T*>(a.out_values) + tile * a.slots * kNmTile;
  for (int r = 0; r < kNmTile; ++r) {
    const int64_t row = tile * kNmTile + r;
    const int64_t kept = row < a.rows ? a.kept : 0;
    const T* values = static_cast<const T*>(a.values) + row * a.kept;
    for (int64_t slot = 0; slot < a.slots; ++slot)
      out[slot * kNmTile + r] = slot < kept ? values[slot] : T{};
  }
}

static void lay_out_indices(const NmPrepareArgs& a, int64_t tile) {
  const int bits = nm_canonical_bits(a.m), field = nm_field_bits(a.m), per_word = 32 / field;
  int32_t* out = static_cast<int32_t*>(a.out_meta) + tile * (a.slots / per_word) * kNmTile;
  int32_t worst = 0;
  for (int64_t word = 0; word < a.slots / per_word; ++word)
    for (int r = 0; r < kNmTile; ++r) {
      const int64_t row = tile * kNmTile + r;
      uint32_t packed = 0;
      for (int i = 0; i < per_word; ++i) {
        const int64_t slot = word * per_word + i;
        if (row >= a.rows || slot >= a.kept) break;
        const int32_t index = nm_read_index(a.meta + row * a.meta_bytes, slot, bits);
        worst = index > worst ? index : worst;
        packed |= static_cast<uint32_t>(index) << (i * field);
      }
      out[word * kNmTile + r] = static_cast<int32_t>(packed);
    }
  a.worst[tile] = worst;
}

// The columns that the 16 rows of a tile share.
template <typename Index>
static void lay_out_columns(const NmPrepareArgs& a, int64_t tile) {
  const int bits = nm_canonical_bits(a.m);
  Index* out = static_cast<Index*>(a.out_meta) + tile * a.kept;
  int32_t worst = 0;
  for (int64_t slot = 0; slot < a.kept; ++slot) {
    const int32_t index = nm_read_index(a.meta + tile * a.meta_bytes, slot, bits);
    worst = index > worst ? index : worst;
    out[slot] = static_cast<Index>(slot / a.n * a.m + index);
  }
  a.worst[tile] = worst;
}

void nm_prepare(const NmPrepareArgs& a, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    with_stored(a.dtype, [&]<typename T>() { lay_out_values<T>(a, tile); });
    if (!a.shared)
      lay_out_indices(a, tile);
    else if (a.narrow)
      lay_out_columns<uint16_t>(a, tile);
    else
      lay_out_columns<int32_t>(a, tile);
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
