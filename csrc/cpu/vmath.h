// Functions of a vector that no instruction computes: exp.
//
//   exp(x) = 2^n * exp(r),  n = round(x / ln 2),  r = x - n ln 2 in [-ln 2 / 2, ln 2 / 2]
//
// ln 2 is subtracted in two parts (the first has few bits, so n * part is exact); exp(r) is a
// polynomial of degree 6. Largest relative error about 1e-7 (2 units in the last place). Above
// 88.72 infinity, below -87.33 zero (no denormals), NaN stays NaN.
// Source: Cody and Waite, "Software Manual for the Elementary Functions", 1980; coefficients: Taylor.
#pragma once

#include "cpu/simd.h"

namespace evoprune::EVOPRUNE_ISA {

EVOPRUNE_INLINE Vec exp(Vec x) {
  constexpr float kHigh = 88.722839f, kLow = -87.336544f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec clamped = x > kHigh ? broadcast(kHigh) : x < kLow ? broadcast(kLow) : x;
  const Vec shifted = fma(clamped, broadcast(1.44269504f), broadcast(kRound));
  const Vec n = shifted - kRound;
  Vec r = fma(n, broadcast(-0.693359375f), clamped);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vec p = broadcast(1.0f / 720.0f);
  p = fma(p, r, broadcast(1.0f / 120.0f));
  p = fma(p, r, broadcast(1.0f / 24.0f));
  p = fma(p, r, broadcast(1.0f / 6.0f));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  // 2^n in two factors: n may be 128, which one float's exponent cannot hold
  const IVec power = (IVec)shifted - (IVec)broadcast(kRound);
  const IVec half = power >> 1;
  const Vec low = (Vec)((half + 127) << 23), high = (Vec)((power - half + 127) << 23);
  const Vec y = p * low * high;
  const Vec infinity = broadcast(__builtin_inff());
  return x > kHigh ? infinity : x < kLow ? zero() : y;
}

}  // namespace evoprune::EVOPRUNE_ISA
