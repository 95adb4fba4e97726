// Answers `_native.plan`: reads the pattern, asks core/plan.h.
#include "native/plan.h"

#include <cstdio>
#include <numeric>

#include "core/nm_layout.h"
#include "core/plan.h"
#include "native/formats.h"

namespace evoprune::native {

namespace {

int lanes_of(const std::string& level) {
  if (level == "baseline") return 4;
  if (level == "avx2") return 8;
  if (level == "avx512" || level == "avx512vnni") return 16;
  fail("expected level baseline, avx2, avx512 or avx512vnni, got " + level);
}

PlanPart strips(const PlanQuestion& q, const char* kernel, int64_t padded, int strip, int lanes) {
  const auto plan = plan::strip_plan(q.tokens, padded, strip, lanes, caches());
  const bool rows = strip == 16;
  const int64_t panel = plan.rows ? 0 : int64_t{plan.panel_vectors} * lanes;
  return {kernel, rows ? "rows" : "tokens", q.tokens, panel, plan.chunk_tokens};
}

std::vector<PlanPart> nm(const PlanQuestion& q, int n, int m, int lanes) {
  const int64_t tiles = ceil_div(q.out_features, kNmTile);
  const plan::NmShape shape{tiles, nm_slots(q.in_features, n, m), q.value_bytes,
                            nm_has_panels(n, m)};
  const auto chosen = plan::NmPlanner(shape, plan::nm_costs(lanes), caches()).plan(q.tokens);
  std::vector<PlanPart> parts;
  for (int i = 0; i < chosen.count; ++i) {
    const auto& part = chosen.parts[i];
    const bool rows = part.panel == plan::kRows;
    parts.push_back({rows ? "nm_linear" : "nm_linear_tokens", rows ? "rows" : "tokens", part.tokens,
                     part.panel, 0});
  }
  return parts;
}

}  // namespace

std::vector<PlanPart> plan(const PlanQuestion& q) {
  check_matrix(q.out_features, q.in_features);
  if (q.tokens < 0) fail("expected tokens of 0 or more, got " + str(q.tokens));
  if (q.value_bytes != 4 && q.value_bytes != 2 && q.value_bytes != 1)
    fail("expected value_bytes of 4, 2 or 1, got " + str(q.value_bytes));
  const int lanes = lanes_of(q.level);
  int a = 0, b = 0, end = 0;
  const char* text = q.pattern.c_str();
  const auto whole = [&] { return end > 0 && text[end] == '\0'; };
  if (std::sscanf(text, "%4d:%4d%n", &a, &b, &end) == 2 && 1 <= a && a <= b && b <= kMaxGroup) {
    if (whole()) return nm(q, a, b, lanes);
    if (q.pattern.substr(static_cast<size_t>(end)) == "v16")
      return {strips(q, "block_linear", nm_kept(q.in_features, a, b) / a * b, 16, lanes)};
  }
  end = 0;
  if (std::sscanf(text, "block:%4dx%4d%n", &a, &b, &end) == 2 && whole() && 1 <= a && 1 <= b &&
      a <= kMaxEdge && b <= kMaxEdge)
    return {strips(q, "block_linear", ceil_div(q.in_features, b) * b, std::gcd(a, 16), lanes)};
  if (q.pattern == "unstructured") return {strips(q, "bitmask_linear", q.in_features, 1, lanes)};
  fail("expected a pattern n:m, n:mv16, block:RxC or unstructured, got " + q.pattern);
}

}  // namespace evoprune::native
