// The file with intrinsics, with its parts simd_*.h: one vector of floats, `Vec`, at the width of the
// ISA level that is being compiled.
//
//   level      lanes  compiled with            bodies
//   baseline     4    nothing                  plain C++ over GCC vector types (also aarch64): the
//   specification avx2         8    -mavx2 -mfma -mf16c      intrinsics avx512      16
//   -mavx512{f,bw,vl,dq}     intrinsics (through SIMDe when EVOPRUNE_EMULATE_AVX512 is set)
//
// `Vec` and `IVec` are GCC vector types, so + - * / < & | >> work on them directly; only what
// operators cannot say has a function here. Everything lives in evoprune::<level>, so no symbol of
// one level can replace another's. Numerics: the build sets -ffp-contract=off, so a fused
// multiply-add happens exactly where fma() is written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#define EVOPRUNE_LEVEL_baseline 0
#define EVOPRUNE_LEVEL_avx2 1
#define EVOPRUNE_LEVEL_avx512 2
#define EVOPRUNE_LEVEL_avx512vnni 2  // with EVOPRUNE_VNNI; the integer kernels only
#define EVOPRUNE_CONCAT_(a, b) a##b
#define EVOPRUNE_CONCAT(a, b) EVOPRUNE_CONCAT_(a, b)
#define EVOPRUNE_LEVEL EVOPRUNE_CONCAT(EVOPRUNE_LEVEL_, EVOPRUNE_ISA)

#if defined(EVOPRUNE_EMULATE_AVX512)
#define SIMDE_ENABLE_NATIVE_ALIASES
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include "cpu/simde_gaps.h"
#pragma GCC diagnostic pop
#elif EVOPRUNE_LEVEL > 0
#pragma GCC diagnostic push  // GCC 12 reports its own "undefined" vectors
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace evoprune::EVOPRUNE_ISA {

inline constexpr int kLanes = EVOPRUNE_LEVEL == 2 ? 16 : EVOPRUNE_LEVEL == 1 ? 8 : 4;
using Vec = float __attribute__((vector_size(4 * kLanes)));
using IVec = int32_t __attribute__((vector_size(4 * kLanes)));
using UVec = uint32_t __attribute__((vector_size(4 * kLanes)));

#define EVOPRUNE_INLINE inline __attribute__((always_inline))

// ---- broadcast, load, store ----
EVOPRUNE_INLINE Vec broadcast(float x) {
  return x - Vec{};  // exact for every x; + would turn -0.0 into 0.0, and costs an addition
}
EVOPRUNE_INLINE IVec broadcast(int32_t x) {
  return IVec{} + x;
}
EVOPRUNE_INLINE Vec zero() {
  return Vec{};
}

template <typename V, typename T>
EVOPRUNE_INLINE V load_bits(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
EVOPRUNE_INLINE Vec load(const float* p) {
  return load_bits<Vec>(p);
}
EVOPRUNE_INLINE void store(float* p, Vec v) {
  std::memcpy(p, &v, sizeof(v));
}

// ---- arithmetic ----
EVOPRUNE_INLINE Vec fma(Vec a, Vec b,
                        Vec c) {  // a * b + c, one rounding (two at the baseline level)
#if EVOPRUNE_LEVEL == 2
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif EVOPRUNE_LEVEL == 1
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
EVOPRUNE_INLINE Vec abs(Vec a) {
  return (Vec)((IVec)a & 0x7fffffff);
}
EVOPRUNE_INLINE Vec max(Vec a, Vec b) {
  return a > b ? a : b;
}  // b where either is NaN
EVOPRUNE_INLINE Vec max_or_nan(Vec a, Vec b) {  // NaN where either is NaN
  return a != a ? a : (a > b ? a : b);
}
EVOPRUNE_INLINE Vec sqrt(Vec a) {
#if EVOPRUNE_LEVEL == 2
  return (Vec)_mm512_sqrt_ps((__m512)a);
#elif EVOPRUNE_LEVEL == 1
  return (Vec)_mm256_sqrt_ps((__m256)a);
#else
  Vec r;
  for (int i = 0; i < kLanes; ++i) r[i] = __builtin_sqrtf(a[i]);
  return r;
#endif
}
EVOPRUNE_INLINE float sum(
    Vec a) {  // lane order is fixed by the level, so the result is deterministic
  float s = a[0];
  for (int i = 1; i < kLanes; ++i) s += a[i];
  return s;
}

// ---- bf16: stored as the upper half of a float; arithmetic is always float ----
struct bf16 {
  uint16_t bits;
};
EVOPRUNE_INLINE float to_float(float x) {
  return x;
}
EVOPRUNE_INLINE float to_float(bf16 x) {
  const uint32_t u = uint32_t{x.bits} << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
EVOPRUNE_INLINE UVec widen_u16(const uint16_t* p) {
#if EVOPRUNE_LEVEL == 2
  return (UVec)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
#elif EVOPRUNE_LEVEL == 1
  return (UVec)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
#else
  UVec r;
  for (int i = 0; i < kLanes; ++i) r[i] = p[i];
  return r;
#endif
}
EVOPRUNE_INLINE Vec load(const bf16* p) {
  return (Vec)(widen_u16(reinterpret_cast<const uint16_t*>(p)) << 16);
}
EVOPRUNE_INLINE UVec round_to_bf16(Vec v) {  // nearest, ties to even; NaN stays NaN (quiet)
  const UVec u = (UVec)v;
  const UVec rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const IVec is_nan = v != v;
  return is_nan ? (UVec)((u >> 16) | 0x40u) : rounded;
}
EVOPRUNE_INLINE void store(bf16* p, Vec v) {
  const UVec r = round_to_bf16(v);
#if EVOPRUNE_LEVEL == 2
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)r));
#elif EVOPRUNE_LEVEL == 1
  const __m128i lo = _mm256_castsi256_si128((__m256i)r);
  const __m128i hi = _mm256_extracti128_si256((__m256i)r, 1);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(lo, hi));
#else
  for (int i = 0; i < kLanes; ++i) p[i].bits = static_cast<uint16_t>(r[i]);
#endif
}

// ---- int8: a stored weight, exact as a float ----
EVOPRUNE_INLINE float to_float(int8_t x) {
  return static_cast<float>(x);
}
EVOPRUNE_INLINE Vec load(const int8_t* p) {
#if EVOPRUNE_LEVEL == 2
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif EVOPRUNE_LEVEL == 1
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  Vec r;
  for (int i = 0; i < kLanes; ++i) r[i] = static_cast<float>(p[i]);
  return r;
#endif
}

// ---- tails: the first n lanes (0 <= n <= kLanes); the others read as 0 and are not written ----
template <typename T>
EVOPRUNE_INLINE Vec load_first(const T* p, int64_t n) {
  T buffer[kLanes] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(T));
  return load(buffer);
}
template <typename T>
EVOPRUNE_INLINE void store_first(T* p, Vec v, int64_t n) {
  T buffer[kLanes];
  store(buffer, v);
  std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(T));
}

// ---- masks: one byte a lane in memory (torch.bool) ----
EVOPRUNE_INLINE IVec load_mask(const uint8_t* p) {  // all ones where the byte is not 0
  uint8_t buffer[16] = {};
  std::memcpy(buffer, p, kLanes);
#if EVOPRUNE_LEVEL == 2
  const __m512i w = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)buffer));
  return (IVec)w != 0;
#elif EVOPRUNE_LEVEL == 1
  const __m256i w = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)buffer));
  return (IVec)w != 0;
#else
  IVec r;
  for (int i = 0; i < kLanes; ++i) r[i] = buffer[i];
  return r != 0;
#endif
}
EVOPRUNE_INLINE Vec keep_where(IVec mask, Vec v) {
  return (Vec)(mask & (IVec)v);
}  // +0.0 elsewhere

EVOPRUNE_INLINE void prefetch(const void* p) {
  __builtin_prefetch(p, 0, 3);
}

// ---- strips: scalar multiply-add and a 4x4 transpose, the same text at every level ----
EVOPRUNE_INLINE float fma(float a, float b, float c) {
#if EVOPRUNE_LEVEL > 0
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
using Vec4 = float __attribute__((vector_size(16)));
EVOPRUNE_INLINE Vec4 load4(const float* p) {
  return load_bits<Vec4>(p);
}
EVOPRUNE_INLINE Vec4 load4(const bf16* p) {
  return Vec4{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}
// out[j][i] = in[i][j] for a 4x4 square; rows are `from` and `to` elements apart
template <typename T>
EVOPRUNE_INLINE void transpose4(const T* in, int64_t from, float* out, int64_t to) {
  const Vec4 r0 = load4(in), r1 = load4(in + from);
  const Vec4 r2 = load4(in + 2 * from), r3 = load4(in + 3 * from);
  const Vec4 low01 = __builtin_shufflevector(r0, r1, 0, 4, 1, 5);
  const Vec4 low23 = __builtin_shufflevector(r2, r3, 0, 4, 1, 5);
  const Vec4 high01 = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
  const Vec4 high23 = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
  const Vec4 columns[4] = {__builtin_shufflevector(low01, low23, 0, 1, 4, 5),
                           __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
                           __builtin_shufflevector(high01, high23, 0, 1, 4, 5),
                           __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
  for (int j = 0; j < 4; ++j) std::memcpy(out + j * to, &columns[j], sizeof(Vec4));
}

}  // namespace evoprune::EVOPRUNE_ISA
