// What the selections share: 16 bytes of scores in, mask bytes out.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/ptx.cuh"
#include "cuda/types.cuh"

namespace evoprune::cuda {

// Scores as bits: 16 aligned bytes.
template <typename Word>
__device__ __forceinline__ Vector<Word, kPer16Bytes<Word>> load_bits(const Word* at) {
  const uint4 bits = ptx::load_once(at);
  Vector<Word, kPer16Bytes<Word>> words;
  memcpy(&words, &bits, sizeof(words));
  return words;
}

// Bits 0 .. 3 -> bytes 0 .. 3, each 0 or 1.
__device__ __forceinline__ uint32_t mask_bytes4(uint32_t bits) {
  return (bits & 15u) * 0x00204081u & 0x01010101u;
}

// The low kCount bits as bytes at `mask`, which is aligned to kCount.
template <int kCount>
__device__ __forceinline__ void store_mask(uint8_t* mask, uint32_t bits) {
  static_assert(kCount == 2 || kCount == 4 || kCount == 8, "one store of 2, 4 or 8 bytes");
  if constexpr (kCount == 2)
    *reinterpret_cast<uint16_t*>(mask) = static_cast<uint16_t>(mask_bytes4(bits & 3u));
  else if constexpr (kCount == 4)
    *reinterpret_cast<uint32_t*>(mask) = mask_bytes4(bits);
  else
    *reinterpret_cast<uint2*>(mask) = make_uint2(mask_bytes4(bits), mask_bytes4(bits >> 4));
}

}  // namespace evoprune::cuda
