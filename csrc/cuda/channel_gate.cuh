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

// kCount gates that follow each other: one load where they are the 16 bytes or a few of them.
template <typename G, int kCount>
__device__ __forceinline__ void copy_gates(const G* from, float (&g)[kCount]) {
  constexpr int kPer = kPer16Bytes<G> < kCount ? kPer16Bytes<G> : kCount;
  if (reinterpret_cast<uintptr_t>(from) % (kPer * sizeof(G)) == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += kPer) {
      const auto v = *reinterpret_cast<const Vector<G, kPer>*>(from + i);
#pragma unroll
      for (int j = 0; j < kPer; ++j) g[i + j] = to_float(v.at[j]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) g[i] = to_float(from[i]);
}
template <int kCount>
__device__ __forceinline__ void gates_at(const ChannelGateArgs& a, int64_t index,
                                         float (&g)[kCount]) {
  switch (a.gate_dtype) {
    case DType::f16:
      return copy_gates(static_cast<const __half*>(a.gates) + index, g);
    case DType::bf16:
      return copy_gates(static_cast<const __nv_bfloat16*>(a.gates) + index, g);
    default:
      return copy_gates(static_cast<const float*>(a.gates) + index, g);
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
