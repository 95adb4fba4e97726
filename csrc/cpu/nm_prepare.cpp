// nm_prepare: canonical nm tensors -> layout "cpu".
//
//   out_values[tile, s, r] = values[16 tile + r, s];  out_meta holds the indices in wider fields
//
// Layouts: core/nm_layout.h. Work unit: a tile of 16 rows. Exact; every output is written, padding
// with zeros. An index of m or more is reported in `worst` (the caller refuses it).
#include "core/nm_layout.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace evoprune::EVOPRUNE_ISA {

template <typename T>
static void prepare_tile(const NmPrepareArgs& a, int64_t tile) {
  const int bits = nm_canonical_bits(a.m), field = nm_field_bits(a.m), per_word = 32 / field;
  T* out_values = static_cast<T*>(a.out_values) + tile * a.slots * kNmTile;
  int32_t* out_meta = a.out_meta + tile * (a.slots / per_word) * kNmTile;
  int32_t worst = 0;
  for (int64_t word = 0; word < a.slots / per_word; ++word)
    for (int r = 0; r < kNmTile; ++r) {
      const int64_t row = tile * kNmTile + r;
      uint32_t packed = 0;
      for (int i = 0; i < per_word; ++i) {
        const int64_t slot = word * per_word + i;
        const bool exists = row < a.rows && slot < a.kept;
        out_values[slot * kNmTile + r] =
            exists ? static_cast<const T*>(a.values)[row * a.kept + slot] : T{};
        if (!exists) continue;
        const int32_t index = nm_read_index(a.meta + row * a.meta_bytes, slot, bits);
        worst = index > worst ? index : worst;
        packed |= static_cast<uint32_t>(index) << (i * field);
      }
      out_meta[word * kNmTile + r] = static_cast<int32_t>(packed);
    }
  a.worst[tile] = worst;
}

void nm_prepare(const NmPrepareArgs& a, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    switch (a.dtype) {
      case DType::f32:
        prepare_tile<float>(a, tile);
        break;
      case DType::bf16:
        prepare_tile<bf16>(a, tile);
        break;
      case DType::i8:
        prepare_tile<int8_t>(a, tile);
        break;
    }
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
