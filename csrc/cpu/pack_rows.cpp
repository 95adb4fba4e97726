// pack_rows: rows of x as float, padded with zeros, in the order in which a linear kernel reads
// them.
//
//   panel = 1   out[r, c] = float(x[r, c])                             out [rows, out_stride]
//   panel = P   out[p, c / 4, r, c % 4] = float(x[p * P + r, c])       out [panels, out_stride / 4,
//   P, 4]
//
//     panel p:  x[0, 0:4] x[1, 0:4] .. x[P-1, 0:4] | x[0, 4:8] x[1, 4:8] ..
//
// A panel is read front to back, whatever K is; rows a power of two apart would share cache sets.
// Columns from K on, and rows beyond the last, are 0. Work unit: one panel. Exact.
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace evoprune::EVOPRUNE_ISA {

template <typename T>
static void pack_row(const T* x, float* out, int64_t columns, int64_t padded) {
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) store(out + c, load(x + c));
  for (; c < columns; ++c) out[c] = to_float(x[c]);
  for (; c < padded; ++c) out[c] = 0.0f;
}

template <typename T>
static void pack_panel(const PackRowsArgs& a, int64_t panel) {
  const T* x = static_cast<const T*>(a.x) + panel * a.panel * a.columns;
  float* out = a.out + panel * a.panel * a.out_stride;
  if (a.panel == 1) return pack_row(x, out, a.columns, a.out_stride);
  for (int r = 0; r < a.panel; ++r, out += 4) {
    const int64_t columns = panel * a.panel + r < a.rows ? a.columns : 0;
    const T* row = x + r * a.columns;
    for (int64_t c = 0; c < a.out_stride; c += 4) {
      float* four = out + c * a.panel;
      if (c + 4 <= columns) {
        for (int i = 0; i < 4; ++i) four[i] = to_float(row[c + i]);
      } else {
        for (int i = 0; i < 4; ++i) four[i] = c + i < columns ? to_float(row[c + i]) : 0.0f;
      }
    }
  }
}

void pack_rows(const PackRowsArgs& a, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel) {
    if (a.dtype == DType::bf16)
      pack_panel<bf16>(a, panel);
    else
      pack_panel<float>(a, panel);
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
