// pack_panels: activations -> the float32 panels that block_linear and bitmask_linear read.
//
//   panels[p][c, t] = x[p * width + t, c]      0 for columns from K to `padded` and tokens beyond
//
//   rows in lanes     width = 1: a panel is a row of x, padded       [padded]
//   tokens in lanes   width = vectors x lanes: x transposed          [padded, width]; the last panel
//                     is as narrow as its tokens allow (panel_vectors)
//
// Work unit: a panel. Exact (bf16 widens without rounding).
#include "cpu/token_lanes.h"

namespace evoprune::EVOPRUNE_ISA {

namespace {

template <typename T>
void pad_row(const T* x, float* row, int64_t columns, int64_t padded) {
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) store(row + c, load(x + c));
  for (; c < columns; ++c) row[c] = to_float(x[c]);
  for (; c < padded; ++c) row[c] = 0.0f;
}

// Columns [c, end) of one panel, four tokens at a time: whole cache lines of x, whole rows of the
// panel before the next columns.
template <typename T>
void transpose_columns(const T* x, float* panel, const PanelArgs& a, int64_t tokens, int width,
                       int64_t c, int64_t end) {
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4) {
    const T* rows = x + t * a.columns;
    int64_t k = c;
    for (; k + 4 <= end; k += 4) transpose4(rows + k, a.columns, panel + k * width + t, width);
    for (; k < end; ++k)
      for (int i = 0; i < 4; ++i) panel[k * width + t + i] = to_float(rows[i * a.columns + k]);
  }
  for (; t < width; ++t)
    for (int64_t k = c; k < end; ++k)
      panel[k * width + t] = t < tokens ? to_float(x[t * a.columns + k]) : 0.0f;
}

template <typename T>
void transpose_panel(const T* x, float* panel, const PanelArgs& a, int64_t tokens, int width) {
  constexpr int64_t kLine = 16;
  for (int64_t c = 0; c < a.columns; c += kLine) {
    const int64_t end = a.columns - c < kLine ? a.columns : c + kLine;
    transpose_columns(x, panel, a, tokens, width, c, end);
  }
  for (int64_t i = a.columns * width; i < a.padded * width; ++i) panel[i] = 0.0f;
}

template <typename T>
void pack(const PanelArgs& a, int64_t begin, int64_t end) {
  const int64_t step = a.vectors == 0 ? 1 : int64_t{a.vectors} * kLanes;
  for (int64_t p = begin; p < end; ++p) {
    const int64_t first = p * step, left = a.tokens - first;
    const T* x = static_cast<const T*>(a.x) + first * a.columns;
    float* panel = a.panels + first * a.padded;
    if (a.vectors == 0)
      pad_row(x, panel, a.columns, a.padded);
    else
      transpose_panel(x, panel, a, left < step ? left : step,
                      (a.whole ? a.vectors : panel_vectors(left, a.vectors)) * kLanes);
  }
}

}  // namespace

void pack_panels(const PanelArgs& a, int64_t begin, int64_t end) {
  a.dtype == DType::f32 ? pack<float>(a, begin, end) : pack<bf16>(a, begin, end);
}

}  // namespace evoprune::EVOPRUNE_ISA
