// What the W8A8 kernels share: the end of a product of int8 weights with int8 activations.
//
//   y[t, n] = act((sums[t, n] * scale[n]) * s[t] + bias[n])
//
// In this order and without a fused multiply-add, so that every ISA level rounds alike: the outputs
// are the same bits wherever the activation is (none and relu; the others use cpu/vmath.h).
#pragma once

#include "cpu/epilogue.h"
#include "cpu/strips.h"

namespace evoprune::EVOPRUNE_ISA {

inline constexpr int kByteVectors = kTile / kLanes;

EVOPRUNE_INLINE Vec scale_sums(IVec sums, Vec scale, float x_scale) {
  return __builtin_convertvector(sums, Vec) * scale * broadcast(x_scale);
}

// The outputs of one token, as finish() of cpu/epilogue.h; `sums` of 16 rows.
inline void finish_integers(void* y, const int32_t* sums, float x_scale, const Epilogue& e,
                            const TileRows& rows) {
  for (int64_t i = 0; i < rows.count; i += kLanes) {
    const int64_t left = rows.count - i, at = rows.row + i;
    Vec z = scale_sums(load_bits<IVec>(sums + i), load_scale(e, at, left), x_scale);
    if (e.bias != nullptr) z += load_bias(e, at, left);
    store_activated(y, z, e, at, left);
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
