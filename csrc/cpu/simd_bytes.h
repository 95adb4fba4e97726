// The third and last file with intrinsics, a part of simd.h: int8 products, four bytes to a lane.
//
//   lane i of an IVec    b0 b1 b2 b3         four columns of one row of a weight, or of x
//   dot4(acc, u, s)      acc[i] + u0*s0 + u1*s1 + u2*s2 + u3*s3       u unsigned, s signed
//
// x is signed as well. AVX-512 VNNI multiplies any u8 by s8, so there x is kept as x + 128 and 128
// times the sum of the weights is taken off (kByteBias). Elsewhere a pair of products must fit 16
// bits: u is a magnitude of at most 127 and the other side takes over the sign, |x| * (w * sign x).
// Exact at every level, so the sums are the same.
#pragma once

#include "cpu/simd.h"

namespace evoprune::EVOPRUNE_ISA {

#if defined(EVOPRUNE_VNNI)
inline constexpr int kByteBias = 128;
#else
inline constexpr int kByteBias = 0;
#endif

EVOPRUNE_INLINE IVec load_lanes(const void* p) {
  return load_bits<IVec>(p);
}
// The low bytes of the lanes of four vectors, in order.
EVOPRUNE_INLINE void store_low_bytes(int8_t* p, const IVec (&v)[4]) {
#if EVOPRUNE_LEVEL == 1
  const __m256i byte = _mm256_set1_epi32(0xff);  // so that nothing saturates
  const __m256i low = _mm256_packus_epi32(_mm256_and_si256((__m256i)v[0], byte),
                                          _mm256_and_si256((__m256i)v[1], byte));
  const __m256i high = _mm256_packus_epi32(_mm256_and_si256((__m256i)v[2], byte),
                                           _mm256_and_si256((__m256i)v[3], byte));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
  _mm256_storeu_si256((__m256i*)p, bytes);
#else
  using Lanes = int8_t __attribute__((vector_size(kLanes)));
  for (int i = 0; i < 4; ++i) {
    const Lanes bytes = __builtin_convertvector(v[i], Lanes);
    std::memcpy(p + i * kLanes, &bytes, sizeof(bytes));
  }
#endif
}
// The 4 bytes at p in every lane.
EVOPRUNE_INLINE IVec broadcast_bytes(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return broadcast(four);
}

#if EVOPRUNE_LEVEL == 0
using ByteVec = int8_t __attribute__((vector_size(4 * kLanes)));
using HalfVec = int16_t __attribute__((vector_size(4 * kLanes)));
using UHalfVec = uint16_t __attribute__((vector_size(4 * kLanes)));
#endif

EVOPRUNE_INLINE IVec dot4(IVec acc, IVec u, IVec s) {
#if defined(EVOPRUNE_VNNI)
  return (IVec)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)u, (__m512i)s);
#elif EVOPRUNE_LEVEL == 2
  const __m512i pairs = _mm512_maddubs_epi16((__m512i)u, (__m512i)s);
  return acc + (IVec)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif EVOPRUNE_LEVEL == 1
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)u, (__m256i)s);
  return acc + (IVec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
  const HalfVec even = (HalfVec)((UHalfVec)u & 0xff) * ((HalfVec)((UHalfVec)s << 8) >> 8);
  const IVec pairs = (IVec)(even + (HalfVec)((UHalfVec)u >> 8) * ((HalfVec)s >> 8));
  return acc + (pairs >> 16) + ((IVec)((UVec)pairs << 16) >> 16);
#endif
}
EVOPRUNE_INLINE IVec abs_bytes(IVec a) {
#if EVOPRUNE_LEVEL == 2
  return (IVec)_mm512_abs_epi8((__m512i)a);
#elif EVOPRUNE_LEVEL == 1
  return (IVec)_mm256_abs_epi8((__m256i)a);
#else
  const ByteVec bytes = (ByteVec)a;
  return (IVec)(bytes < 0 ? -bytes : bytes);
#endif
}
// Each byte of `a`, negated where that of `sign` is negative; anything where it is 0.
EVOPRUNE_INLINE IVec with_sign_of(IVec sign, IVec a) {
#if EVOPRUNE_LEVEL == 2
  const __mmask64 negative = _mm512_movepi8_mask((__m512i)sign);
  return (IVec)_mm512_mask_sub_epi8((__m512i)a, negative, _mm512_setzero_si512(), (__m512i)a);
#elif EVOPRUNE_LEVEL == 1
  return (IVec)_mm256_sign_epi8((__m256i)a, (__m256i)sign);
#else
  return (IVec)((ByteVec)sign < 0 ? -(ByteVec)a : (ByteVec)a);
#endif
}

// One side of a product, used many times: its bytes, and their magnitudes where dot4 wants them.
struct Bytes {
  IVec value;
#if defined(EVOPRUNE_VNNI)
  EVOPRUNE_INLINE explicit Bytes(IVec v) : value(v) {}
#else
  IVec magnitude;
  EVOPRUNE_INLINE explicit Bytes(IVec v) : value(v), magnitude(abs_bytes(v)) {}
#endif
};
// acc + x . w where the same x meets many w: x is what is prepared.
EVOPRUNE_INLINE IVec dot_x(IVec acc, const Bytes& x, IVec w) {
#if defined(EVOPRUNE_VNNI)
  return dot4(acc, x.value, w);
#else
  return dot4(acc, x.magnitude, with_sign_of(x.value, w));
#endif
}
// The same where one w meets many x.
EVOPRUNE_INLINE IVec dot_w(IVec acc, IVec x, const Bytes& w) {
#if defined(EVOPRUNE_VNNI)
  return dot4(acc, x, w.value);
#else
  return dot4(acc, w.magnitude, with_sign_of(w.value, x));
#endif
}

// ---- a window: 16 bytes in every 128-bit part, from which each byte of a key picks one (0-15) ----
struct ByteWindow {
#if EVOPRUNE_LEVEL == 2
  __m512i v;
  EVOPRUNE_INLINE explicit ByteWindow(const int8_t* p)
      : v(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p))) {}
  EVOPRUNE_INLINE IVec pick(IVec key) const { return (IVec)_mm512_shuffle_epi8(v, (__m512i)key); }
#elif EVOPRUNE_LEVEL == 1
  __m256i v;
  EVOPRUNE_INLINE explicit ByteWindow(const int8_t* p)
      : v(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p))) {}
  EVOPRUNE_INLINE IVec pick(IVec key) const { return (IVec)_mm256_shuffle_epi8(v, (__m256i)key); }
#else
  ByteVec v;
  EVOPRUNE_INLINE explicit ByteWindow(const int8_t* p) : v(load_bits<ByteVec>(p)) {}
  EVOPRUNE_INLINE IVec pick(IVec key) const { return (IVec)__builtin_shuffle(v, (ByteVec)key); }
#endif
};

}  // namespace evoprune::EVOPRUNE_ISA
