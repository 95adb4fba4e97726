// Selection for n:m patterns: scores of one group of m weights -> which n are kept.
//
//   scores   0.1  0.9  0.9  0.3      n = 2
//   kept      .    x    x    .       ties: the lowest index wins; NaN ranks below every number
//
// Torch-free, host and device. Source of the rule: the n largest scores of each group (Zhou et al.,
// "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", ICLR 2021).
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace evoprune::select {

inline constexpr int kMaxGroup = 32;  // the largest m: a group's mask fits one word

// True when candidate (score a, index i) is kept in preference to (score b, index j).
EVOPRUNE_HD bool ranks_above(float a, int i, float b, int j) {
  if (a != a) return b != b && i < j;
  if (b != b) return true;
  return a > b || (a == b && i < j);
}

// The same for i < j, without branches.
EVOPRUNE_HD bool first_ranks_above(float a, float b) {
  return (b != b) | (a >= b);
}

// Bit i is set when weight i of the group is kept. `count` <= m entries exist (a group cut off by
// the row's end).
EVOPRUNE_HD uint32_t nm_group(const float* scores, int count, int n) {
  uint32_t kept = 0;
  for (int i = 0; i < count; ++i) {
    int above = 0;
    for (int j = 0; j < count; ++j) above += j != i && ranks_above(scores[j], j, scores[i], i);
    if (above < n) kept |= uint32_t{1} << i;
  }
  return kept;
}

}  // namespace evoprune::select
