// What a pass over a 2:4 weight costs, by ISA level: data of core/plan.h, written by
// `python -m bench costs --write`, whose record is bench/results/costs.json (baseline and avx2; the
// figures of avx512 are estimates from the instructions, not measured).
//
//   rows[i]     rows in lanes, a block of 1, 2, 4, 8 tokens      nanoseconds a tile of 16 rows
//   panels[i]   tokens in lanes, a panel of 16, 32, 64 tokens    and a slot
#pragma once

namespace evoprune::plan {

struct NmCosts {
  static constexpr int kPanels = 3;
  static constexpr int kPanelTokens[kPanels] = {16, 32, 64};
  int lanes;  // of the level: 4 baseline, 8 avx2, 16 avx512
  double rows[4];
  double panels[kPanels];
};

inline constexpr NmCosts kNmCosts[] = {
    {4, {12.01, 18.77, 32.45, 56.38}, {38.16, 63.30, 134.31}},
    {8, {2.04, 2.70, 4.00, 6.85}, {10.37, 17.65, 35.44}},
    {16, {1.5, 2.5, 4.0, 8.0}, {11.0, 21.0, 41.0}},
};

inline const NmCosts& nm_costs(int lanes) {
  for (const NmCosts& costs : kNmCosts)
    if (costs.lanes == lanes) return costs;
  return kNmCosts[0];
}

}  // namespace evoprune::plan
