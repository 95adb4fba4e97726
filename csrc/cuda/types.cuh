// Element types on the device: to and from float, and vectors of them that fill 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace evoprune::cuda {

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(__half x) {
  return __half2float(x);
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ float to_float(int8_t x) {
  return static_cast<float>(x);
}

// Rounds to nearest even.
template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// kCount elements that are loaded and stored by one instruction.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T at[kCount];
};
template <typename T>
inline constexpr int kPer16Bytes = 16 / static_cast<int>(sizeof(T));

// Elements of 16 bytes from anywhere, as they are stored; what is not inside(i) is 0 and not read.
template <typename T, typename F>
__device__ __forceinline__ void gather16(uint32_t (&w)[4], const T* from, const F& inside) {
  using Bits = std::conditional_t<sizeof(T) == 1, uint8_t,
                                  std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>>;
  constexpr int kOfWord = 4 / static_cast<int>(sizeof(T));
  const Bits* bits = reinterpret_cast<const Bits*>(from);
#pragma unroll
  for (int i = 0; i < 4; ++i) w[i] = 0;
#pragma unroll
  for (int i = 0; i < kPer16Bytes<T>; ++i)
    if (inside(i)) w[i / kOfWord] |= static_cast<uint32_t>(bits[i]) << (i % kOfWord * 32 / kOfWord);
}

// What an importance functor asks of its numbers (importance/average.h): here a float.
struct FloatMath {
  static __device__ __forceinline__ float fma(float a, float b, float c) { return fmaf(a, b, c); }
  static __device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
  static __device__ __forceinline__ float abs(float a) { return fabsf(a); }
  static __device__ __forceinline__ float all(float x) { return x; }
};

}  // namespace evoprune::cuda
