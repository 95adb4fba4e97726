// The end of a product with a 2:4 weight: from sums in registers to rows of y.
//
// mma leaves y transposed: lane 4g + t holds outputs g and g + 8 of tokens 2t and 2t + 1. A warp
// turns its 64 outputs x tokens round through shared memory, as 32-bit sums, so that the loop over
// activations is not unrolled and a part of a split sum leaves the same way:
//
//   a token, 68 words    | n 0-3 | n 8-11 | .. | n 56-59 | 4 unused | n 4-7 | .. | n 60-63 |
//                          word 0                                     word 36
//   write   banks 8t + 4 (g / 4) + g % 4: all 32      read   8 lanes, 128 bytes in a row, twice
//
// Then lane 8i + c has outputs 8c .. 8c + 7 of token i: 16 bytes of y, 128 bytes side by side.
// Where N is no multiple of 8 or y not aligned, a lane has one output, 32 side by side.
//
//   float   y = act(sum + bias[n])          int32   y = act((sum * scale[n]) * x_scale[token] + bias[n])
//
// The parts of a split sum are kept as they are read, [splits, tokens, rows64], the 64 outputs of a
// tile as above without the gap; they are added in ascending order.
#pragma once

#include "core/nm_cuda_layout.h"
#include "cuda/epilogue.cuh"
#include "cuda/ptx.cuh"
#include "cuda/tile.cuh"
#include "cuda/types.cuh"

namespace evoprune::cuda {

struct NmOutput {
  void* y;      // [tokens, rows]
  DType dtype;  // of y
  int64_t tokens, rows;
  Epilogue epilogue;
  const float* x_scale;  // [tokens], of integer sums
  void* parts;           // [splits, tokens, rows64] of sums, or null
};

inline constexpr int kStagedToken = 68, kStagedOdd = 36;  // words

__device__ __forceinline__ int staged_word(int token, int n) {
  return token * kStagedToken + n / 4 % 2 * kStagedOdd + n / 8 * 4 + n % 4;
}

template <typename Sum>
struct alignas(16) Sums4 {
  Sum at[4];
};

template <int kCount>
__device__ __forceinline__ void activate_all(float (&z)[kCount], Activation activation) {
  const auto each = [&](auto f) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) z[i] = f(z[i]);
  };
  switch (activation) {
    case Activation::none:
      return;
    case Activation::relu:
      return each([](float v) { return activate(v, Activation::relu); });
    case Activation::gelu:
      return each([](float v) { return activate(v, Activation::gelu); });
    case Activation::gelu_tanh:
      return each([](float v) { return activate(v, Activation::gelu_tanh); });
    case Activation::silu:
      return each([](float v) { return activate(v, Activation::silu); });
  }
}

// bias and scale of the outputs of a lane.
template <int kCount>
struct NmRowTerms {
  float bias[kCount], scale[kCount];

  __device__ __forceinline__ NmRowTerms(const NmOutput& out, int64_t n) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool inside = n + i < out.rows;
      bias[i] = inside ? bias_at(out.epilogue, n + i) : 0.0f;
      scale[i] = inside ? scale_at(out.epilogue, n + i) : 0.0f;
    }
  }
};

template <typename Sum, int kCount>
__device__ __forceinline__ void finish(float (&z)[kCount], const Sum (&sums)[kCount],
                                       const NmRowTerms<kCount>& terms, const NmOutput& out,
                                       int64_t token) {
  if constexpr (static_cast<Sum>(0.5f) == 0) {  // integers; as the CPU, without fma
    const float x_scale = out.x_scale[token];
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      z[i] = __fadd_rn(__fmul_rn(__fmul_rn(static_cast<float>(sums[i]), terms.scale[i]), x_scale),
                       terms.bias[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) z[i] = sums[i] + terms.bias[i];
  }
  activate_all(z, out.epilogue.activation);
}

__device__ __forceinline__ uint32_t pack2(float a, float b, __half) {
  const __half2 pair = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t pack2(float a, float b, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// The bits of four sums or outputs.
template <typename V>
__device__ __forceinline__ uint4 words4(const V* v) {
  static_assert(sizeof(V) == 4, "words");
  const auto* w = reinterpret_cast<const uint32_t*>(v);
  return {w[0], w[1], w[2], w[3]};
}

template <typename Y>
__device__ __forceinline__ void store8(Y* y, const float (&z)[8]) {
  if constexpr (sizeof(Y) == 4) {
    ptx::store_global16(y, words4(z));
    ptx::store_global16(y + 4, words4(z + 4));
  } else {
    ptx::store_global16(y, {pack2(z[0], z[1], Y{}), pack2(z[2], z[3], Y{}), pack2(z[4], z[5], Y{}),
                            pack2(z[6], z[7], Y{})});
  }
}

// f(Y{}) with the type of y: that of the values where they have 16 bits.
template <typename T, typename F>
__device__ __forceinline__ void with_output(const NmOutput& out, const F& f) {
  if constexpr (sizeof(T) == 2)
    f(T{});
  else if (out.dtype == DType::f32)
    f(float{});
  else if (out.dtype == DType::f16)
    f(__half{});
  else
    f(__nv_bfloat16{});
}

__device__ __forceinline__ bool stores_vectors(const NmOutput& out) {
  return out.rows % 8 == 0 && reinterpret_cast<uintptr_t>(out.y) % 16 == 0;
}

// What a warp stores: tokens from `token` on, `count` of them, of the 64 rows from `row` on.
struct NmWarpPlace {
  int64_t row, token, split;
  int first, count;  // of the staged tokens
};

// Sums of a token from `word` on, of the kParts warps that share the stages.
template <int kParts, int kWords, typename Sum>
__device__ __forceinline__ void staged(Sum* sums, const Sum* region, int word, int part_words) {
  unrolled<kParts>([&](auto part) {
    const Sum* from = region + part.value * part_words + word;
    if constexpr (kWords == 4) {
      const Sums4<Sum> four = *reinterpret_cast<const Sums4<Sum>*>(from);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] = part.value == 0 ? four.at[i] : sums[i] + four.at[i];
    } else {
      sums[0] = part.value == 0 ? from[0] : sums[0] + from[0];
    }
  });
}

// d[m][j]: the 16 x 8 sums of mma.sp, rows 16m and tokens 8j on -> the warp's region.
template <typename Sum, int kTokens8>
__device__ __forceinline__ void stage_sums(Sum* region, const Sum (&d)[4][kTokens8][4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  Sum* to = region + staged_word(2 * t, g);
#pragma unroll
  for (int m = 0; m < 4; ++m)
#pragma unroll
    for (int j = 0; j < kTokens8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        to[(8 * j + i % 2) * kStagedToken + (2 * m + i / 2) * 4] = d[m][j][i];
}

template <int kParts, typename Sum>
__device__ __forceinline__ void store_part(const Sum* region, int part_words,
                                           const NmWarpPlace& place, const NmOutput& out) {
  const int lane = threadIdx.x % 32, c = lane % 8;
  const int64_t rows64 = nm_cuda_padded(out.rows);
  if (place.row >= rows64) return;
  Sum* parts = static_cast<Sum*>(out.parts) + (place.split * out.tokens + place.token) * rows64 +
               place.row + 4 * c;
#pragma unroll 1
  for (int i = lane / 8; i < place.count && place.token + i < out.tokens; i += 4) {
    Sum low[4], high[4];
    const int word = (place.first + i) * kStagedToken + 4 * c;
    staged<kParts, 4>(low, region, word, part_words);
    staged<kParts, 4>(high, region, word + kStagedOdd, part_words);
    ptx::store_global16(parts + i * rows64, words4(low));
    ptx::store_global16(parts + i * rows64 + 32, words4(high));
  }
}

template <typename T, int kParts, typename Sum>
__device__ __forceinline__ void store_vectors(const Sum* region, int part_words,
                                              const NmWarpPlace& place, const NmOutput& out) {
  const int lane = threadIdx.x % 32, c = lane % 8;
  const int64_t n = place.row + 8 * c;
  if (n >= out.rows) return;
  const NmRowTerms<8> terms(out, n);
#pragma unroll 1
  for (int i = lane / 8; i < place.count && place.token + i < out.tokens; i += 4) {
    Sum sums[8];
    const int word = (place.first + i) * kStagedToken + 4 * c;
    staged<kParts, 4>(sums, region, word, part_words);
    staged<kParts, 4>(sums + 4, region, word + kStagedOdd, part_words);
    float z[8];
    finish(z, sums, terms, out, place.token + i);
    with_output<T>(out, [&](auto y) {
      store8(static_cast<decltype(y)*>(out.y) + (place.token + i) * out.rows + n, z);
    });
  }
}

template <typename T, int kParts, typename Sum>
__device__ __forceinline__ void store_elements(const Sum* region, int part_words,
                                               const NmWarpPlace& place, const NmOutput& out) {
#pragma unroll 1
  for (int in = threadIdx.x % 32; in < 64; in += 32) {
    const int64_t n = place.row + in;
    if (n >= out.rows) return;
    const NmRowTerms<1> terms(out, n);
#pragma unroll 1
    for (int i = 0; i < place.count && place.token + i < out.tokens; ++i) {
      Sum sums[1];
      staged<kParts, 1>(sums, region, staged_word(place.first + i, in), part_words);
      float z[1];
      finish(z, sums, terms, out, place.token + i);
      with_output<T>(out, [&](auto y) {
        using Y = decltype(y);
        static_cast<Y*>(out.y)[(place.token + i) * out.rows + n] = from_float<Y>(z[0]);
      });
    }
  }
}

}  // namespace evoprune::cuda
