// The tile and the split of a product with a 2:4 weight (host code only).
//
//   cycles = max(processor, L2, memory) + what a split adds
//
//   processor   a block needs `stages` times what kNmTiles says; blocks that share a processor take
//               turns, so it needs the sum of theirs, and a little more, which nothing hides
//   L2, memory  bytes over what a processor's share of the bandwidth is, those of an A100; the ratio
//               to the tensor cores is much the same on later devices
#include "cuda/nm_plan.h"

namespace evoprune::cuda {

namespace {

constexpr double kMemoryBytes = 13, kL2Bytes = 32;  // a cycle and processor
constexpr double kBlockCycles = 1500;               // first loads and last stores of a block
constexpr double kUnhidden = 0.4;                   // of a block's work
constexpr double kSecondKernel = 3000;
constexpr int64_t kMostSplits = 32;

struct Problem {
  int64_t tokens, rows, columns;
  int value_bytes, processors;
};

double cycles(const Problem& p, const NmPlan& plan) {
  const NmTileShape& shape = kNmTiles[plan.tile];
  const double outputs = static_cast<double>(p.tokens) * static_cast<double>(p.rows);
  const double x = static_cast<double>(p.tokens) * static_cast<double>(p.columns) * p.value_bytes;
  const double w = static_cast<double>(nm_cuda_padded(p.rows)) *
                   static_cast<double>(nm_cuda_padded(p.columns)) * (p.value_bytes / 2.0 + 0.125);
  const double work =
      kBlockCycles + static_cast<double>(plan.stages_of_split) * shape.stage_cycles();
  const double turns = static_cast<double>(ceil_div(plan.blocks(), p.processors)) + kUnhidden;
  const double moved = x * static_cast<double>(plan.row_tiles) +
                       w * static_cast<double>(plan.token_tiles) + 2 * outputs;
  const double processor = work * turns;
  double most = processor;
  const auto at_least = [&](double c) { most = most > c ? most : c; };
  at_least(moved / (p.processors * kL2Bytes));
  at_least((x + w + 2 * outputs) / (p.processors * kMemoryBytes));
  most += processor / 8;  // of two that wait for memory alike, the one that leaves more time
  if (plan.splits == 1) return most;
  const double partial = 2 * 4 * outputs * static_cast<double>(plan.splits);
  return most + kSecondKernel + partial / (p.processors * kL2Bytes);
}

NmPlan plan_of(const Problem& p, int tile, int64_t splits) {
  const NmTileShape& shape = kNmTiles[tile];
  NmPlan plan{};
  plan.tile = tile;
  plan.row_tiles = ceil_div(p.rows, shape.rows);
  plan.token_tiles = ceil_div(p.tokens, shape.tokens);
  plan.stages = ceil_div(nm_cuda_padded(p.columns), shape.columns(p.value_bytes));
  plan.stages_of_split = plan.stages == 0 ? 0 : ceil_div(plan.stages, splits);
  plan.splits = plan.stages == 0 ? 1 : ceil_div(plan.stages, plan.stages_of_split);
  return plan;
}

}  // namespace

NmPlan nm_plan(int64_t tokens, int64_t rows, int64_t columns, int value_bytes, int processors,
               int tile) {
  const Problem p{tokens, rows, columns, value_bytes, processors};
  const int first = tile < 0 ? 0 : tile, last = tile < 0 ? kNmTileCount - 1 : tile;
  NmPlan best = plan_of(p, first, 1);
  double least = cycles(p, best);
  for (int t = first; t <= last; ++t)
    for (int64_t splits = 1; splits <= kMostSplits; ++splits) {
      const NmPlan plan = plan_of(p, t, splits);
      const double c = cycles(p, plan);
      if (c >= least) continue;
      best = plan;
      least = c;
    }
  return best;
}

}  // namespace evoprune::cuda
