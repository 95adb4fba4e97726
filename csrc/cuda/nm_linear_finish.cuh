// The outputs of a lane of a product with a 2:4 weight: from sums to numbers of y.
//
//   float   y = act(sum + bias[n])          int32   y = act((sum * scale[n]) * x_scale[token] + bias[n])
//
// The integer formula as the CPU has it, without fused multiply-add.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/ptx.cuh"
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

template <typename Sum>
inline constexpr bool kIntegerSums = static_cast<Sum>(0.5f) == 0;

// bias and, of integer sums, scale of the outputs of a lane; kInside: all of them exist.
template <typename Sum, int kCount, bool kInside>
struct NmRowTerms {
  float bias[kCount], scale[kCount];

  __device__ __forceinline__ NmRowTerms(const NmOutput& out, int64_t n) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool inside = kInside || n + i < out.rows;
      bias[i] = inside ? bias_at(out.epilogue, n + i) : 0.0f;
      if constexpr (kIntegerSums<Sum>) scale[i] = inside ? out.epilogue.scale[n + i] : 0.0f;
    }
  }
};

// From `token` on, of integer sums; otherwise null.
template <typename Sum>
__device__ __forceinline__ const float* x_scales(const NmOutput& out, int64_t token) {
  return kIntegerSums<Sum> ? out.x_scale + token : nullptr;
}

template <typename Sum, int kCount, bool kInside>
__device__ __forceinline__ void finish(float (&z)[kCount], const Sum (&sums)[kCount],
                                       const NmRowTerms<Sum, kCount, kInside>& terms,
                                       const float* x_scale_at, Activation activation) {
  if constexpr (kIntegerSums<Sum>) {
    const float x_scale = *x_scale_at;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      z[i] = __fadd_rn(__fmul_rn(__fmul_rn(static_cast<float>(sums[i]), terms.scale[i]), x_scale),
                       terms.bias[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) z[i] = sums[i] + terms.bias[i];
  }
  activate_all(z, activation);
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

template <typename T>
__device__ __forceinline__ int output_bytes(const NmOutput& out) {
  return sizeof(T) == 1 && out.dtype == DType::f32 ? 4 : 2;
}

__device__ __forceinline__ bool stores_vectors(const NmOutput& out) {
  return out.rows % 8 == 0 && reinterpret_cast<uintptr_t>(out.y) % 16 == 0;
}

}  // namespace evoprune::cuda
