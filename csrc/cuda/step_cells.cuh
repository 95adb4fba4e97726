// A lane's elements of an optimizer step: how they come from memory, and how they are rounded and
// stored.
#pragma once

#include "core/philox.h"
#include "cuda/step.h"
#include "cuda/types.cuh"

namespace evoprune::cuda {

// kCount elements of one parameter in registers.
template <int kCount>
struct StepCells {
  float w[kCount], g[kCount], moment[kCount], square[kCount], largest[kCount], average[kCount];
  Vector<uint8_t, kCount> kept;
  uint32_t random[kCount][2];  // core/philox.h
};

// One load and one store (a plain one, but by its name: the compiler takes others apart) move all
// elements of a vector.
template <int kBytes>
struct WordOf;
template <>
struct WordOf<1> {
  using Type = uint8_t;
};
template <>
struct WordOf<2> {
  using Type = uint16_t;
};
template <>
struct WordOf<4> {
  using Type = uint32_t;
};
template <>
struct WordOf<8> {
  using Type = uint2;
};
template <>
struct WordOf<16> {
  using Type = uint4;
};

template <typename T, int kCount>
__device__ __forceinline__ Vector<T, kCount> load_vector(const void* p, int64_t i) {
  using Word = typename WordOf<sizeof(T) * kCount>::Type;
  const Word word = *reinterpret_cast<const Word*>(static_cast<const T*>(p) + i);
  Vector<T, kCount> out;
  memcpy(&out, &word, sizeof(word));
  return out;
}
template <typename T, int kCount>
__device__ __forceinline__ void store_vector(void* p, int64_t i, const Vector<T, kCount>& in) {
  using Word = typename WordOf<sizeof(T) * kCount>::Type;
  Word word;
  memcpy(&word, &in, sizeof(word));
  __stwb(reinterpret_cast<Word*>(static_cast<T*>(p) + i), word);
}

template <typename T, int kCount>
__device__ __forceinline__ void load(float (&out)[kCount], const void* p, int64_t i) {
  const auto in = load_vector<T, kCount>(p, i);
#pragma unroll
  for (int k = 0; k < kCount; ++k) out[k] = to_float(in.at[k]);
}

template <typename T>
__device__ __forceinline__ T rounded(float x, uint32_t random, bool seeded) {
  if constexpr (sizeof(T) == 2) {
    if (seeded) return __ushort_as_bfloat16(round_randomly_to_bf16(__float_as_uint(x), random));
  }
  return from_float<T>(x);
}

// Stores values and leaves in them what memory now holds. Word `kWord` of the random bits, half
// `kHalf` of it.
template <typename T, int kWord, int kHalf, int kCount>
__device__ __forceinline__ void store(void* p, int64_t i, float (&values)[kCount],
                                      const StepCells<kCount>& cells, bool seeded) {
  Vector<T, kCount> out;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    out.at[k] = rounded<T>(values[k], cells.random[k][kWord] >> (16 * kHalf) & 0xFFFFu, seeded);
    values[k] = to_float(out.at[k]);
  }
  store_vector(p, i, out);
}

template <int kCount>
__device__ __forceinline__ void draw(StepCells<kCount>& cells, int64_t i, uint32_t tensor,
                                     uint32_t step, uint64_t seed) {
#pragma unroll
  for (int k = 0; k < kCount; k += 2) {
    const Random128 bits = step_random((i + k) / 2, tensor, step, seed);
    const bool odd = kCount == 1 && i % 2 != 0;
    cells.random[k][0] = odd ? bits.at[2] : bits.at[0];
    cells.random[k][1] = odd ? bits.at[3] : bits.at[1];
    if constexpr (kCount > 1) {
      cells.random[k + 1][0] = bits.at[2];
      cells.random[k + 1][1] = bits.at[3];
    }
  }
}

}  // namespace evoprune::cuda
