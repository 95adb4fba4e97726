// The arguments of the roofline probes (cpu/roofline.cpp), a part of the table in cpu/kernels.h.
#pragma once

#include <cstdint>

namespace evoprune {

// The probes of the roofline (cpu/roofline.cpp). A work unit is a span of kProbeSpan elements; of
// probe_fma, one run of `iterations` rounds.
inline constexpr int64_t kProbeSpan = 16384;
inline constexpr int kProbeStreams = 4;
struct ProbeReadArgs {
  const float* data;
  float* sums;    // one of each span
  int64_t ahead;  // elements between a load and its prefetch; 0: no prefetch
  int streams;    // spans read side by side, up to kProbeStreams
};
struct ProbeFmaArgs {
  float x, y;
  int64_t iterations;
  float* sums;    // one of each unit, so that nothing is left out
  int64_t* flop;  // of each unit
};
struct ProbeStreamArgs {
  float* weight;
  const float* grad;
  float *moment, *square, *importance;
  const uint8_t* mask;
  float step;
  int64_t ahead;
};

}  // namespace evoprune
