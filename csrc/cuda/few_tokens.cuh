// What the kernels for few tokens share: x in shared memory, stored values as floats, and the choice
// of a template by dtypes and tokens.
//
//   x   columns x tokens, so that a column of the weight is an address, and one load gives x of a
//       whole vector of V tokens (up to 16 bytes, a slot):
//
//     plane 0   column 0: tokens 0 .. V-1 | column 1: .. | ..        plane 1: tokens V .. 2V-1
//     slot of column c in its plane   c ^ 4 (c / kRun % 2)
//
//   Lanes that read at one time from two neighbouring runs of kRun columns, 4 columns of each, meet
//   different banks thanks to the exclusive or.
#pragma once

#include <type_traits>

#include "cuda/device.h"
#include "cuda/types.cuh"

namespace evoprune::cuda::few {

// kBytes: of shared memory for x.
template <typename T, int kTokensOfBlock, int kBytes>
struct Tokens {
  static constexpr int kTokens = kTokensOfBlock;
  static constexpr int kMost = 16 / static_cast<int>(sizeof(T));
  static constexpr int kVector = kTokens < kMost ? kTokens : kMost;    // tokens of a plane
  static constexpr int kSlot = kVector * static_cast<int>(sizeof(T));  // bytes of a column in it
  static constexpr int kPlanes = kTokens / kVector;
  static constexpr int kChunk = kBytes / (kSlot * kPlanes);  // columns
  static constexpr int kPlane = kChunk * kSlot;              // bytes
  static_assert(kTokens % kVector == 0, "planes are full");
};

// The columns [first, first + count) of `tokens` tokens of x [.., columns] into shared memory; count
// is even, what lies beyond the last column or token is 0. A thread takes two neighbouring columns.
template <typename T, typename C, int kRun = C::kChunk>
__device__ __forceinline__ void stage(char* shared, const T* x, int64_t columns, int64_t token,
                                      int tokens, int64_t first, int count) {
  using Slot = Vector<T, C::kVector>;
  const bool wide = columns % 2 == 0 && reinterpret_cast<uintptr_t>(x) % (2 * sizeof(T)) == 0;
#pragma unroll 1
  for (int plane = 0; plane < C::kPlanes; ++plane) {
    const int more = tokens - plane * C::kVector;
    const T* rows = x + (token + plane * C::kVector) * columns + first;
#pragma unroll(C::kVector == 1 ? 4 : 1)
    for (int c = 2 * static_cast<int>(threadIdx.x); c < count; c += 2 * blockDim.x) {
      const int64_t left = columns - first - c;
      const T* from = rows + c;
      Slot pair[2];
#pragma unroll
      for (int v = 0; v < C::kVector; ++v, from += columns) {
        Vector<T, 2> read{{from_float<T>(0.0f), from_float<T>(0.0f)}};
        if (v < more && left > 0) {
          if (wide) {
            read = *reinterpret_cast<const Vector<T, 2>*>(from);
          } else {
            read.at[0] = from[0];
            if (left > 1) read.at[1] = from[1];
          }
        }
        pair[0].at[v] = read.at[0];
        pair[1].at[v] = read.at[1];
      }
      const int slot = c ^ (c / kRun % 2 * 4);
      Slot* to = reinterpret_cast<Slot*>(shared + plane * C::kPlane) + slot;
      if constexpr (C::kSlot == 16) {
        // lanes 0 .. 3 and 4 .. 7 store their two in turns: neighbours are 32 bytes apart
        const bool second = threadIdx.x / 4 % 2 != 0;
        to[second] = second ? pair[1] : pair[0];
        to[!second] = second ? pair[0] : pair[1];
      } else {
        *reinterpret_cast<Vector<Slot, 2>*>(to) = {{pair[0], pair[1]}};
      }
    }
  }
}

// Value i of the 16 bytes `w`; the last argument is its type.
__device__ __forceinline__ float stored(const uint32_t (&w)[4], int i, float /*tag*/) {
  return __uint_as_float(w[i]);
}
__device__ __forceinline__ float stored(const uint32_t (&w)[4], int i, __nv_bfloat16 /*tag*/) {
  return __uint_as_float(i % 2 ? w[i / 2] & 0xffff0000u : w[i / 2] << 16);
}
__device__ __forceinline__ float stored(const uint32_t (&w)[4], int i, __half /*tag*/) {
  return to_float(__ushort_as_half(static_cast<unsigned short>(w[i / 2] >> (i % 2 * 16))));
}
// Without a conversion, which has a quarter of the rate: 2^23 + byte is a float with the byte as its
// lowest bits.
__device__ __forceinline__ float stored(const uint32_t (&w)[4], int i, int8_t /*tag*/) {
  const uint32_t biased = w[i / 4] ^ 0x80808080u;
  return __uint_as_float(__byte_perm(biased, 0x4b000000u, 0x7440u + i % 4)) - 8388736.0f;
}

// ---- host ----
// run(T{}, S{}): the types of x and of the values, which are those of x or int8.
template <typename F>
void with_types(DType x, DType stored, const F& run) {
  const auto with = [&](auto t) { stored == DType::i8 ? run(t, int8_t{}) : run(t, t); };
  if (x == DType::f32) return with(float{});
  if (x == DType::f16) return with(__half{});
  with(__nv_bfloat16{});
}
// run(constant): how many tokens a block takes. float has no registers for the sums of 16.
template <typename T, typename F>
void with_tokens(int64_t tokens, const F& run) {
  if (tokens == 1) return run(std::integral_constant<int, 1>{});
  if (tokens <= 4) return run(std::integral_constant<int, 4>{});
  if constexpr (sizeof(T) == 2)
    if (tokens > 8) return run(std::integral_constant<int, 16>{});
  run(std::integral_constant<int, 8>{});
}

}  // namespace evoprune::cuda::few
