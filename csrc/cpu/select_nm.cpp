// select_nm: keep the n highest scores of every m consecutive weights of a row.
//
//   mask[r, g*m + i] = rank of scores[r, g*m + i] within its group < n
//
//   scores  [rows, columns]   | m | m | m |..|tail|    a shorter tail group keeps up to n as well
//
// Work unit: one row. Ties and NaN: see select/nm.h. Exact; the order of threads cannot change it.
#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "select/nm.h"

namespace evoprune::EVOPRUNE_ISA {

void select_nm(const SelectNmArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* scores = a.scores + row * a.columns;
    uint8_t* mask = a.mask + row * a.columns;
    for (int64_t c = 0; c < a.columns; c += a.m) {
      const int count = static_cast<int>(a.columns - c < a.m ? a.columns - c : a.m);
      const uint32_t kept = select::nm_group(scores + c, count, a.n);
      for (int i = 0; i < count; ++i) mask[c + i] = (kept >> i) & 1;
    }
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
