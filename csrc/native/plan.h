// The plan of a linear kernel for a shape (core/plan.h), as text and numbers for Python.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace evoprune::native {

struct PlanPart {
  std::string kernel;  // file of csrc/cpu, without its extension
  std::string lanes;   // what lies in the lanes of a vector: "rows" or "tokens"
  int64_t tokens;
  int64_t panel;  // tokens side by side; 0: x is read row by row
  int64_t chunk;  // tokens whose x is packed at a time; 0: all
};

struct PlanQuestion {
  std::string pattern;  // as in evoprune_kernels.formats.parse_pattern, without channel
  int64_t out_features, in_features, tokens;
  std::string level;  // baseline, avx2, avx512 or avx512vnni
  int value_bytes;    // of a stored weight: 4, 2 or 1
};

std::vector<PlanPart> plan(const PlanQuestion& question);

}  // namespace evoprune::native
