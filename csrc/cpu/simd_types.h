// The other float types of a tensor: f16, stored and computed with as float, and f64 with vectors of
// its own. Nothing here needs an intrinsic: GCC splits the wide vectors.
#pragma once

#include "cpu/gates.h"
#include "cpu/simd.h"

namespace evoprune::EVOPRUNE_ISA {

using DVec = double __attribute__((vector_size(8 * kLanes)));

struct f16 {
  uint16_t bits;
};

template <typename T>
struct Wide {
  using Vector = Vec;
  using Scalar = float;
};
template <>
struct Wide<double> {
  using Vector = DVec;
  using Scalar = double;
};
template <typename T>
using VecOf = typename Wide<T>::Vector;
template <typename T>
using ScalarOf = typename Wide<T>::Scalar;

// ---- double ----
EVOPRUNE_INLINE DVec load(const double* p) {
  return load_bits<DVec>(p);
}
EVOPRUNE_INLINE void store(double* p, DVec v) {
  std::memcpy(p, &v, sizeof(v));
}
EVOPRUNE_INLINE DVec broadcast(double x) {
  return x - DVec{};
}
EVOPRUNE_INLINE DVec fma(DVec a, DVec b, DVec c) {
  return a * b + c;
}
EVOPRUNE_INLINE double sum(DVec a) {
  double s = a[0];
  for (int i = 1; i < kLanes; ++i) s += a[i];
  return s;
}

// ---- f16: every half is a float; a float is rounded to the nearest half, ties to even ----
EVOPRUNE_INLINE Vec load(const f16* p) {
  const UVec u = widen_u16(reinterpret_cast<const uint16_t*>(p));
  const UVec magnitude = (u & 0x7fffu) << 13;  // the exponent counts from 2^-14, not from 2^-126
  const UVec number = (UVec)((Vec)magnitude * 0x1p112f);
  const UVec special = magnitude | 0x7f800000u;  // infinity, NaN
  return (Vec)((magnitude >= 0x0f800000u ? special : number) | ((u & 0x8000u) << 16));
}
EVOPRUNE_INLINE void store(f16* p, Vec v) {
  const UVec u = (UVec)v, a = u & 0x7fffffffu;
  const UVec normal = (a + 0xfffu + ((a >> 13) & 1u) - 0x38000000u) >> 13;
  const UVec small = (UVec)((Vec)a + 0.5f) - 0x3f000000u;  // 0.5 + a is rounded to 2^-24
  UVec r = a < 0x38800000u ? small : normal;
  r = a >= 0x477ff000u ? (UVec{} + 0x7c00u) : r;  // from 65520 on
  r = a > 0x7f800000u ? (UVec{} + 0x7e00u) : r;
  r |= (u >> 16) & 0x8000u;
  for (int i = 0; i < kLanes; ++i) p[i].bits = static_cast<uint16_t>(r[i]);
}

// ---- any of them ----
template <typename V>
using MaskOf = decltype(V{} != V{});
template <typename V>
EVOPRUNE_INLINE V keep(MaskOf<V> mask, V v) {  // +0.0 elsewhere
  return (V)(mask & (MaskOf<V>)v);
}
template <typename V>
EVOPRUNE_INLINE V size_of(V v) {  // |v|
  return v < 0 ? -v : v;
}
template <typename V>
EVOPRUNE_INLINE V relu_of(V v) {  // NaN stays
  return v <= 0 ? V{} : v;
}
template <typename V>
EVOPRUNE_INLINE V lanes_from_zero() {  // 0, 1, 2, ..
  V v{};
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// Calls run.template operator()<T>() with the type of a tensor.
template <typename Run>
EVOPRUNE_INLINE void with_type(FloatType type, Run run) {
  switch (type) {
    case FloatType::f32:
      return run.template operator()<float>();
    case FloatType::bf16:
      return run.template operator()<bf16>();
    case FloatType::f16:
      return run.template operator()<f16>();
    case FloatType::f64:
      return run.template operator()<double>();
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
