// Floats as unsigned integers of the same order, so that selections compare and count bits.
//
//   score   NaN   -inf  ..  -1  ..  -0.0 = +0.0  ..  1  ..  +inf
//   key      0    1 ..                sign bit        ..  below the largest
//
// Host and device, for the bits of any IEEE type and bf16; `infinity`: the bits of +inf in it.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace evoprune::select {

// The bits of +inf.
inline constexpr uint16_t kInfinityF16 = 0x7c00, kInfinityBf16 = 0x7f80;
inline constexpr uint32_t kInfinityF32 = 0x7f800000u;
inline constexpr uint64_t kInfinityF64 = 0x7ff0000000000000u;

// Bits of a type as wide as Word -> its key. The key of +inf plus one does not overflow.
template <typename Word>
EVOPRUNE_HD Word rank_key(Word bits, Word infinity) {
  constexpr Word sign = static_cast<Word>(Word{1} << (8 * sizeof(Word) - 1));
  const Word magnitude = static_cast<Word>(bits & ~sign);
  const Word below = static_cast<Word>(sign - magnitude);
  const Word above = static_cast<Word>(sign + magnitude);
  return magnitude > infinity ? Word{0} : (bits & sign) != 0 ? below : above;
}

}  // namespace evoprune::select
