// The physical limits that a kernel is held to, measured: bytes read, fused multiply-adds, and the
// memory traffic of a fused optimizer step.
//
//   read    sums[span] = sum of data[span]                            4 bytes an element
//   fma     a[i] = a[i] * x + y, kChains chains side by side          2 FLOP a lane and chain
//   stream  w' = (w + c g) * mask;  m' = m + c g;  v' = v + c g;  s' = s + c w'
//           w, m, v, s read and written, g and mask read             37 bytes an element
//
// A work unit is a span of kProbeSpan elements (read, stream) or one run of all chains (fma). The
// arithmetic of `stream` is the least that keeps every load and store; rules and square roots of a
// real step hide under its memory traffic. `ahead` is a software prefetch distance in elements, 0
// for none: the hardware follows few streams and stops at every page, so the probe tries several; and
// `streams` spans are read side by side, since a core follows some streams faster than one.
// Source: the roofline model, Williams et al., CACM 2009; the loops follow STREAM (McCalpin, 1995).
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace evoprune::EVOPRUNE_ISA {

namespace {

inline constexpr int kSums = 8;  // additions in flight: their latency times two a cycle
inline constexpr int64_t kLine = 16;
inline constexpr int64_t kPiece = 256;  // of a stream at a time

// enough to hide the latency of the multiply-adds, few enough for the registers
inline constexpr int kChains = kLanes == 16 ? 24 : 12;

}  // namespace

void probe_read(const ProbeReadArgs& a, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; unit += a.streams) {
    const int64_t count = end - unit < a.streams ? end - unit : a.streams;
    Vec totals[kProbeStreams] = {};
    for (int64_t i = 0; i < kProbeSpan; i += kPiece)
      for (int64_t s = 0; s < count; ++s) {
        const float* p = a.data + (unit + s) * kProbeSpan + i;
        Vec sums[kSums] = {};
        for (int64_t j = 0; j < kPiece; j += kSums * kLanes) {
          if (a.ahead > 0)
            for (int64_t k = 0; k < kSums * kLanes; k += kLine) prefetch(p + j + a.ahead + k);
#pragma GCC unroll 8
          for (int k = 0; k < kSums; ++k) sums[k] += load(p + j + k * kLanes);
        }
        for (int k = 0; k < kSums; ++k) totals[s] += sums[k];
      }
    for (int64_t s = 0; s < count; ++s) a.sums[unit + s] = sum(totals[s]);
  }
}

void probe_fma(const ProbeFmaArgs& a, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Vec x = broadcast(a.x), y = broadcast(a.y);
    Vec chains[kChains];
    for (int k = 0; k < kChains; ++k) chains[k] = broadcast(static_cast<float>(k));
    for (int64_t i = 0; i < a.iterations; ++i) {
#pragma GCC unroll 24
      for (int k = 0; k < kChains; ++k) chains[k] = fma(chains[k], x, y);
    }
    Vec total = zero();
    for (int k = 0; k < kChains; ++k) total += chains[k];
    a.sums[unit] = sum(total);
    a.flop[unit] = a.iterations * kChains * kLanes * 2;
  }
}

void probe_stream(const ProbeStreamArgs& a, int64_t begin, int64_t end) {
  const Vec c = broadcast(a.step);
  for (int64_t i = begin * kProbeSpan; i < end * kProbeSpan; i += kLine) {
    if (a.ahead > 0) {
      const int64_t next = i + a.ahead;
      prefetch(a.weight + next);
      prefetch(a.grad + next);
      prefetch(a.moment + next);
      prefetch(a.square + next);
      prefetch(a.importance + next);
      prefetch(a.mask + next);
    }
    for (int64_t j = i; j < i + kLine; j += kLanes) {
      const Vec g = load(a.grad + j);
      const Vec w = keep_where(load_mask(a.mask + j), fma(c, g, load(a.weight + j)));
      store(a.weight + j, w);
      store(a.moment + j, fma(c, g, load(a.moment + j)));
      store(a.square + j, fma(c, g, load(a.square + j)));
      store(a.importance + j, fma(c, w, load(a.importance + j)));
    }
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
