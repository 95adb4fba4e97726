// The end of every linear kernel: scale of an int8 weight's row, bias, activation, rounding to the
// dtype of y, tails.
//
//   y[row + i] = act(sums[i] * scale[row + i] + bias[row + i]),  0 <= i < count
//
// The kernels leave the sums of a tile in a small float buffer (in L1) and call `finish` once a
// token, so the activation's code exists once and not once an accumulator.
//
//   relu       z > 0 ? z : 0                                              NaN stays NaN
//   gelu       z * Phi(z);  Phi(z) = 1 - q for z >= 0, else q;  q = exp(-z^2/2) * t * P(t) / 2,
//              t = 1 / (1 + 0.3275911 |z| / sqrt 2)
//   gelu_tanh  z / (1 + exp(-2u)),  u = sqrt(2 / pi) * (z + 0.044715 z^3);  as 1 + tanh u = 2 / (1 +
//              exp(-2u))
//   silu       z / (1 + exp(-z))
//
// Numerics: float32 throughout; |gelu error| <= 1.5e-7 |z| + rounding. Infinities and NaN as torch.
// Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016; erfc: Abramowitz and Stegun
// 7.1.26.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/vmath.h"

namespace evoprune::EVOPRUNE_ISA {

EVOPRUNE_INLINE Vec gelu(Vec z) {
  const Vec one = broadcast(1.0f);
  const Vec t = one / fma(abs(z), broadcast(0.3275911f * 0.70710678f), one);
  Vec p = broadcast(1.061405429f * 0.5f);
  p = fma(p, t, broadcast(-1.453152027f * 0.5f));
  p = fma(p, t, broadcast(1.421413741f * 0.5f));
  p = fma(p, t, broadcast(-0.284496736f * 0.5f));
  p = fma(p, t, broadcast(0.254829592f * 0.5f));
  const Vec q = p * t * exp(z * z * -0.5f);
  return z * (z < 0.0f ? q : one - q);
}

EVOPRUNE_INLINE Vec gelu_tanh(Vec z) {
  const Vec inner = fma(z * z * z, broadcast(0.044715f), z);
  return z / (1.0f + exp(inner * -1.59576912f));  // 2 sqrt(2 / pi)
}

EVOPRUNE_INLINE Vec silu(Vec z) {
  return z / (1.0f + exp(-z));
}

inline Vec activate(Vec z, Activation activation) {
  switch (activation) {
    case Activation::none:
      return z;
    case Activation::relu:
      return z < 0.0f ? zero() : z;
    case Activation::gelu:
      return gelu(z);
    case Activation::gelu_tanh:
      return gelu_tanh(z);
    case Activation::silu:
      return silu(z);
  }
  return z;
}

EVOPRUNE_INLINE Vec load_bias(const Epilogue& e, int64_t row, int64_t count) {
  if (e.bias == nullptr) return zero();
  if (e.bias_dtype == DType::bf16) {
    const bf16* p = static_cast<const bf16*>(e.bias) + row;
    return count < kLanes ? load_first(p, count) : load(p);
  }
  const float* p = static_cast<const float*>(e.bias) + row;
  return count < kLanes ? load_first(p, count) : load(p);
}

EVOPRUNE_INLINE Vec load_scale(const Epilogue& e, int64_t row, int64_t count) {
  if (e.scale == nullptr) return broadcast(1.0f);
  return count < kLanes ? load_first(e.scale + row, count) : load(e.scale + row);
}

// The outputs of token `token` in y [tokens, rows].
EVOPRUNE_INLINE void* token_outputs(void* y, int64_t token, int64_t rows, const Epilogue& e) {
  return static_cast<char*>(y) + token * rows * (e.y_dtype == DType::f32 ? 4 : 2);
}

template <typename T>
EVOPRUNE_INLINE void store_outputs(T* y, Vec z, int64_t count) {
  if (count < kLanes)
    store_first(y, z, count);
  else
    store(y, z);
}

// act(z) to rows [at, at + kLanes) of one token's outputs, or to the `left` rows that there are.
EVOPRUNE_INLINE void store_activated(void* y, Vec z, const Epilogue& e, int64_t at, int64_t left) {
  z = activate(z, e.activation);
  if (e.y_dtype == DType::f32)
    store_outputs(static_cast<float*>(y) + at, z, left);
  else
    store_outputs(static_cast<bf16*>(y) + at, z, left);
}

// y: the outputs of one token, from row 0. `sums` must be readable up to a multiple of kLanes.
inline void finish(void* y, const float* sums, const Epilogue& e, int64_t row, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t left = count - i, at = row + i;
    const Vec z = fma(load(sums + i), load_scale(e, at, left), load_bias(e, at, left));
    store_activated(y, z, e, at, left);
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
