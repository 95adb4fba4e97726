// The epilogue on the device: act(sum * scale[n] + bias[n]), in float.
//
//   none z | relu max(z, 0), NaN stays | gelu z (1 + erf(z / sqrt 2)) / 2
//   gelu_tanh z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2 | silu z / (1 + exp(-z))
#pragma once

#include "cuda/epilogue.h"
#include "cuda/types.cuh"

namespace evoprune::cuda {

__device__ __forceinline__ float activate(float z, Activation activation) {
  switch (activation) {
    case Activation::none:
      return z;
    case Activation::relu:
      return z < 0.0f ? 0.0f : z;
    case Activation::gelu:
      return 0.5f * z * (1.0f + erff(z * 0.70710678118654752f));
    case Activation::gelu_tanh: {
      const float inner = 0.79788456080286536f * (z + 0.044715f * z * z * z);
      return 0.5f * z * (1.0f + tanhf(inner));
    }
    case Activation::silu:
      return z / (1.0f + expf(-z));
  }
  return z;
}

__device__ __forceinline__ float bias_at(const Epilogue& e, int64_t n) {
  if (e.bias == nullptr) return 0.0f;
  if (e.bias_dtype == DType::f32) return static_cast<const float*>(e.bias)[n];
  if (e.bias_dtype == DType::f16) return to_float(static_cast<const __half*>(e.bias)[n]);
  return to_float(static_cast<const __nv_bfloat16*>(e.bias)[n]);
}

__device__ __forceinline__ float scale_at(const Epilogue& e, int64_t n) {
  return e.scale == nullptr ? 1.0f : e.scale[n];
}

}  // namespace evoprune::cuda
