// Which kernel takes which tokens, and in what pieces: pure functions of sizes, caches and costs.
//
//   nm, tokens      | 32 | 32 | 16 | t t t |       panels with tokens in lanes (nm_linear_tokens),
//                    one pass over the            then rows in lanes (nm_linear); a last panel may
//                    weights each                 be wider than its tokens
//
// The plan with the least time is taken:
//
//   time(part) = passes * max(compute, stream)            nanoseconds
//   compute    = tiles * slots * cost                     cost of a tile and slot, core/nm_costs.h
//   stream     = bytes of the weight / kBytesPerNs        where they do not fit into L2
//
//   strips, x       one kernel for a strip's rows; x is read row by row (strips of 16 rows, or one
//                    token) or as panels, and what has to be packed for that is packed in chunks
//
// Every sum depends on the plan only through the part its token is in, and a plan depends on sizes
// and on the machine, not on threads. Torch-free; `_native.plan` shows the same choice.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/caches.h"
#include "core/nm_costs.h"

namespace evoprune::plan {

inline constexpr double kBytesPerNs = 15;  // of one core, beyond L2
inline constexpr int kRows = 0;            // the panel of tokens whose rows are in lanes

// A weight of `tiles` x `slots` x 16 values, as nm_prepare lays it out.
struct NmShape {
  int64_t tiles, slots;
  int value_bytes;
  bool panels;  // whether the pattern has a kernel with tokens in lanes
};

struct NmPart {
  int panel;  // tokens side by side, or kRows
  int64_t tokens;
};

struct NmPlan {
  static constexpr int kMost = 8;
  NmPart parts[kMost];
  int count = 0;
  double nanoseconds = 0;

  void add(NmPart part, double time) {
    parts[count++] = part;
    nanoseconds += time;
  }
};

class NmPlanner {
 public:
  NmPlanner(const NmShape& shape, const NmCosts& costs, const Caches& caches)
      : costs_(costs), panels_(shape.panels) {
    const double bytes = static_cast<double>(shape.tiles * shape.slots) *
                         (kTileRows * shape.value_bytes + kTileRows / 4);
    work_ = static_cast<double>(shape.tiles * shape.slots);
    stream_ = bytes > static_cast<double>(caches.l2) ? bytes / kBytesPerNs : 0;
  }

  NmPlan plan(int64_t tokens) const {
    if (tokens == 0) return NmPlan{};
    NmPlan best = rows(tokens);
    if (!panels_) return best;
    for (int i = 0; i < NmCosts::kPanels; ++i) {
      const int panel = NmCosts::kPanelTokens[i];
      const int64_t whole = tokens / panel;
      if (whole == 0 && tokens <= panel / 2) continue;
      NmPlan candidate = whole > 0 ? plan(tokens - whole * panel) : NmPlan{};  // of the rest
      candidate.nanoseconds += static_cast<double>(std::max<int64_t>(whole, 1)) * pass(i);
      if (candidate.nanoseconds >= best.nanoseconds) continue;
      best = NmPlan{};
      best.add({panel, whole > 0 ? whole * panel : tokens}, candidate.nanoseconds);
      for (int p = 0; p < candidate.count; ++p) best.add(candidate.parts[p], 0);
    }
    return best;
  }

 private:
  static constexpr int kTileRows = 16;

  double pass(int i) const { return std::max(work_ * costs_.panels[i], stream_); }

  // Rows in lanes: blocks of 8, 4, 2 and 1 tokens, the weights streamed once.
  NmPlan rows(int64_t tokens) const {
    double cost = static_cast<double>(tokens / 8) * costs_.rows[3];
    for (int i = 0; i < 3; ++i)
      if (tokens >> i & 1) cost += costs_.rows[i];
    NmPlan plan;
    plan.add({kRows, tokens}, std::max(work_ * cost, stream_));
    return plan;
  }

  NmCosts costs_;
  bool panels_;
  double work_, stream_;
};

// The panel whose passes over all `tokens` take the least time; the widest of equal ones.
inline int nm_panel(int64_t tokens, const NmCosts& costs) {
  int best = NmCosts::kPanels - 1;
  const auto time = [&](int i) {
    const int64_t panel = NmCosts::kPanelTokens[i];
    return static_cast<double>((tokens + panel - 1) / panel) * costs.panels[i];
  };
  for (int i = best - 1; i >= 0; --i)
    if (time(i) < time(best)) best = i;
  return NmCosts::kPanelTokens[best];
}

// ---- strips (block, bitmask, n:m with shared masks) ----

inline constexpr int64_t kStripGroup = 48;         // tokens that pass a tile of 16 rows at least
inline constexpr int64_t kPanelBytes = 128 << 10;  // of a panel: also the pages of the first TLB
inline constexpr int64_t kAliasFloats = 512;  // rows this far apart share the sets of an L1 cache

struct StripPlan {
  bool rows;  // x is read row by row, `stride` floats apart; else as panels
  int64_t stride;
  int panel_vectors;     // of a panel
  int64_t chunk_tokens;  // packed at a time
  int64_t group_tokens;  // that pass a tile of weights while it is in L2
};

// padded: columns of x that the kernel may read; strip: rows of a strip.
inline StripPlan strip_plan(int64_t tokens, int64_t padded, int strip, int lanes,
                            const Caches& caches) {
  const auto per_token = [&](int64_t bytes) { return bytes / 4 / std::max<int64_t>(1, padded); };
  StripPlan plan{};
  plan.rows = strip == 16 || tokens == 1;
  // never a multiple of 2 KB, or many rows drive each other out of the 8 ways of a set
  const bool aliased = strip == 16 && tokens > 4 && padded % kAliasFloats == 0;
  plan.stride = aliased ? padded + 16 : padded;
  const int64_t fitting = per_token(std::min(kPanelBytes, caches.l2 / 4)) / lanes;
  const int most = std::max(1, 8 / strip);
  plan.panel_vectors =
      static_cast<int>(std::min<int64_t>(std::clamp<int64_t>(fitting, 2, 8), most));
  const int64_t step = plan.rows ? kStripGroup : int64_t{plan.panel_vectors} * lanes;
  const int64_t in_l2 = per_token(caches.l2 * 3 / 8);
  plan.chunk_tokens = std::max<int64_t>(1, in_l2 / step) * step;
  plan.group_tokens = std::max(in_l2, kStripGroup);
  return plan;
}

}  // namespace evoprune::plan
