// Random bits that depend on nothing but where they are used, and the rounding that uses them.
//
//   philox(counter, key)     Philox 4x32-10: 128 bits of counter -> 128 random bits
//   step_random(...)         the bits of one element in one optimizer step
//
//     counter   | element / 2, low 32 bits | element / 2, high | tensor | step |
//     key       | seed, low 32 bits | seed, high |
//     words     | a of the even element | b | a of the odd element | b |
//                 a: low 16 bits weight,        high 16 bits first moment (or momentum buffer)
//                 b: low 16 bits second moment, high 16 bits largest second moment
//
//   The highest bit of the counter's second word is free: with it set, word a of an element rounds an
//   importance in bf16 (low 16 bits). Only ops/_philox.py does that, the kernels keep fp32.
//
//   element = index in the tensor, row by row; tensor = index in the list of the call; step = the
//   number of the step (the first is 1). So neither the launch nor the device can change a result;
//   ops/_philox.py is the same in torch.
// Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace evoprune {

struct Random128 {
  uint32_t at[4];
};
struct Random32x2 {
  uint32_t a, b;
};

EVOPRUNE_HD Random128 philox(Random128 counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.at[0], c1 = counter.at[1], c2 = counter.at[2], c3 = counter.at[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(p0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Of elements 2 * pair and 2 * pair + 1.
EVOPRUNE_HD Random128 step_random(int64_t pair, uint32_t tensor, uint32_t step, uint64_t seed) {
  const Random128 counter{
      {static_cast<uint32_t>(pair), static_cast<uint32_t>(pair >> 32), tensor, step}};
  return philox(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// The bits of a float -> those of a bf16: up with the probability of what is cut off, so the mean
// is the float. Values of bf16 (zeros, infinities) stay; NaN stays NaN. `random` < 2^16.
EVOPRUNE_HD uint16_t round_randomly_to_bf16(uint32_t bits, uint32_t random) {
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  return static_cast<uint16_t>(nan ? (bits >> 16 | 0x40u) : (bits + random) >> 16);
}

}  // namespace evoprune
