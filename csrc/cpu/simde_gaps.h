// AVX-512 intrinsics that simd.h uses and older SIMDe releases lack (0.7.4 does): element by element.
//
// Only for `EVOPRUNE_EMULATE=avx512`, where the AVX-512 level is executed on a CPU without it. SIMDe
// makes every intrinsic that it has a macro; one that is no macro here is GCC's own, which needs the
// hardware, and is replaced. A newer SIMDe brings its own and nothing here is used.
#pragma once

#include <simde/x86/avx512.h>

#include <cstdint>
#include <cstring>

namespace evoprune::simde_gaps {

// To[i] = From[i] for as many elements as the wider side has.
template <typename To, typename From, typename ToVector, typename FromVector>
inline __attribute__((always_inline)) ToVector convert(FromVector v) {
  constexpr int kCount = sizeof(ToVector) / sizeof(To);
  static_assert(kCount * sizeof(From) == sizeof(FromVector), "the sides differ in elements");
  From from[kCount];
  To to[kCount];
  std::memcpy(from, &v, sizeof(from));
  for (int i = 0; i < kCount; ++i) to[i] = static_cast<To>(from[i]);
  ToVector result;
  std::memcpy(&result, to, sizeof(to));
  return result;
}

// result[i] = v[the element of i's 128-bit lane that the low 2 bits of key[i] name]
inline __attribute__((always_inline)) __m512 permutevar_ps(__m512 v, __m512i key) {
  float from[16], to[16];
  uint32_t keys[16];
  std::memcpy(from, &v, sizeof(from));
  std::memcpy(keys, &key, sizeof(keys));
  for (uint32_t i = 0; i < 16; ++i) to[i] = from[(i & ~3u) + (keys[i] & 3u)];
  __m512 result;
  std::memcpy(&result, to, sizeof(to));
  return result;
}

}  // namespace evoprune::simde_gaps

#ifndef _mm512_cvtepu8_epi32
#define _mm512_cvtepu8_epi32(v) \
  (evoprune::simde_gaps::convert<int32_t, uint8_t, __m512i, __m128i>(v))
#endif
#ifndef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32(v) \
  (evoprune::simde_gaps::convert<int32_t, uint16_t, __m512i, __m256i>(v))
#endif
#ifndef _mm512_cvtepi32_epi16
#define _mm512_cvtepi32_epi16(v) \
  (evoprune::simde_gaps::convert<int16_t, int32_t, __m256i, __m512i>(v))
#endif
// 0.7.4 gives this name to the masked intrinsic.
#undef _mm512_madd_epi16
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#ifndef _mm512_cvtepi8_epi32
#define _mm512_cvtepi8_epi32(v) \
  (evoprune::simde_gaps::convert<int32_t, int8_t, __m512i, __m128i>(v))
#endif
#ifndef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps(v) (evoprune::simde_gaps::convert<float, int32_t, __m512, __m512i>(v))
#endif
#ifndef _mm512_permutevar_ps
#define _mm512_permutevar_ps(v, key) (evoprune::simde_gaps::permutevar_ps(v, key))
#endif
