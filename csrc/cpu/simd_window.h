// The second file with intrinsics, a part of simd.h: a few floats in a register, from
// which every lane picks one.
#pragma once

#include "cpu/simd.h"

namespace evoprune::EVOPRUNE_ISA {

// ---- windows: W consecutive floats, from which every lane picks one by an index below W ----
// `key` turns indices into what `pick` wants (once for all windows of that slot). W = 4 reads the
// low 2 bits of an index, 8 the low 3, 16 the low 4, 32 the low 5; higher bits may hold anything.
template <int W>
struct Window {
  const float* p;
  EVOPRUNE_INLINE explicit Window(const float* from) : p(from) {}
  static EVOPRUNE_INLINE IVec key(IVec index) { return index & (W - 1); }
  EVOPRUNE_INLINE Vec pick(IVec key) const {
    Vec v;
    for (int i = 0; i < kLanes; ++i) v[i] = p[key[i]];
    return v;
  }
};
#if EVOPRUNE_LEVEL == 2
template <>
struct Window<4> {
  __m512 v;
  EVOPRUNE_INLINE explicit Window(const float* p) : v(_mm512_broadcast_f32x4(_mm_loadu_ps(p))) {}
  static EVOPRUNE_INLINE IVec key(IVec index) { return index; }
  EVOPRUNE_INLINE Vec pick(IVec key) const { return (Vec)_mm512_permutevar_ps(v, (__m512i)key); }
};
template <>
struct Window<8> {
  __m512 v;
  EVOPRUNE_INLINE explicit Window(const float* p) : v(_mm512_broadcast_f32x8(_mm256_loadu_ps(p))) {}
  static EVOPRUNE_INLINE IVec key(IVec index) { return index; }
  EVOPRUNE_INLINE Vec pick(IVec key) const { return (Vec)_mm512_permutexvar_ps((__m512i)key, v); }
};
template <>
struct Window<16> {
  __m512 v;
  EVOPRUNE_INLINE explicit Window(const float* p) : v(_mm512_loadu_ps(p)) {}
  static EVOPRUNE_INLINE IVec key(IVec index) { return index; }
  EVOPRUNE_INLINE Vec pick(IVec key) const { return (Vec)_mm512_permutexvar_ps((__m512i)key, v); }
};
template <>
struct Window<32> {
  __m512 low, high;
  EVOPRUNE_INLINE explicit Window(const float* p)
      : low(_mm512_loadu_ps(p)), high(_mm512_loadu_ps(p + 16)) {}
  static EVOPRUNE_INLINE IVec key(IVec index) { return index; }
  EVOPRUNE_INLINE Vec pick(IVec key) const {
    return (Vec)_mm512_permutex2var_ps(low, (__m512i)key, high);
  }
};
#elif EVOPRUNE_LEVEL == 1
template <>
struct Window<4> {  // vpshufb: on AMD it leaves the fma units alone, vpermilps does not
  __m256i v;
  EVOPRUNE_INLINE explicit Window(const float* p)
      : v((__m256i)_mm256_broadcast_ps((const __m128*)p)) {}
  static EVOPRUNE_INLINE IVec key(IVec index) {  // the bytes of float `index`
    const __m256i bytes = _mm256_setr_epi32(0x03020100, 0x07060504, 0x0b0a0908, 0x0f0e0d0c,
                                            0x03020100, 0x07060504, 0x0b0a0908, 0x0f0e0d0c);
    return (IVec)_mm256_permutevar_ps((__m256)bytes, (__m256i)index);
  }
  EVOPRUNE_INLINE Vec pick(IVec key) const { return (Vec)_mm256_shuffle_epi8(v, (__m256i)key); }
};
template <>
struct Window<8> {
  __m256 v;
  EVOPRUNE_INLINE explicit Window(const float* p) : v(_mm256_loadu_ps(p)) {}
  static EVOPRUNE_INLINE IVec key(IVec index) { return index; }
  EVOPRUNE_INLINE Vec pick(IVec key) const {
    return (Vec)_mm256_permutevar8x32_ps(v, (__m256i)key);
  }
};
#endif

}  // namespace evoprune::EVOPRUNE_ISA
