// What the forward and the backward of channel_gate share: which gate an element has, and vectors.
#pragma once

#include "cuda/channel_gate.h"
#include "cuda/ptx.cuh"
#include "cuda/types.cuh"

namespace evoprune::cuda {

__device__ __forceinline__ float gate_at(const ChannelGateArgs& a, int64_t index) {
  switch (a.gate_dtype) {
    case DType::f16:
      return to_float(static_cast<const __half*>(a.gates)[index]);
    case DType::bf16:
      return to_float(static_cast<const __nv_bfloat16*>(a.gates)[index]);
    default:
      return static_cast<const float*>(a.gates)[index];
  }
}

// The gate of plane (sample b, channel c) = b * channels + c.
__device__ __forceinline__ float gate_of_plane(const ChannelGateArgs& a, uint32_t plane) {
  return gate_at(a, a.per_sample ? plane : plane % static_cast<uint32_t>(a.channels));
}

// x * gate, rounded once; +0 behind a closed gate.
template <typename T>
__device__ __forceinline__ T gated(T x, float gate) {
  return from_float<T>(gate == 0.0f ? 0.0f : to_float(x) * gate);
}

template <typename T>
__device__ __forceinline__ Vector<T, kPer16Bytes<T>> load_vector(const T* p) {
  const uint4 bits = ptx::load_once(p);
  return reinterpret_cast<const Vector<T, kPer16Bytes<T>>&>(bits);
}

}  // namespace evoprune::cuda
