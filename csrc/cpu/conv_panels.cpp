// conv_image and conv_panels: what a convolution multiplies its weight with (core/conv_layout.h).
//
//   x      [B, C, H, W]      ->  image   padded, phases side by side, float32        once
//   image                    ->  panel   [columns, width], `width` positions in lanes      as needed
//
//   a panel of 8 positions of a 3x3 kernel, output rows of 6:   runs  (0,2..5) (1,0..3)
//
//     column (c, i, j)     x[i, j+2 .. j+5]  x[1+i, j .. j+3]        one copy a run
//
// The runs are found once a panel; a column is its offset and a few vectors. Exact (bf16 widens without
// rounding). Positions beyond the last and columns beyond K are 0.
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace evoprune::EVOPRUNE_ISA {

namespace {

constexpr int64_t kMostRuns = 64;  // a panel is never wider

struct Run {
  int64_t from, length;
};

// One row of a plane: `columns` entries of x from column `first` on, in steps; 0 where x has none.
template <typename T>
void copy_row(const T* x, int64_t width, int64_t first, int64_t step, int64_t columns, float* out) {
  int64_t q = 0;
  for (; q < columns && first + q * step < 0; ++q) out[q] = 0.0f;
  const int64_t inside = first >= width ? 0 : (width - 1 - first) / step + 1;
  const int64_t end = inside < columns ? inside : columns;
  if (step == 1)
    for (; q + kLanes <= end; q += kLanes) store(out + q, load(x + first + q));
  for (; q < end; ++q) out[q] = to_float(x[first + q * step]);
  for (; q < columns; ++q) out[q] = 0.0f;
}

template <typename T>
void planes(const ConvImageArgs& a, int64_t begin, int64_t end) {
  const ConvShape& s = a.shape;
  const ConvImage& m = a.layout;
  for (int64_t p = begin; p < end; ++p) {
    const T* plane = static_cast<const T*>(a.x) + p * s.height * s.width;
    for (int64_t row = 0; row < m.rows; ++row) {
      const int64_t y = row * m.row_step - s.padding[0];
      float* out = a.image + p * m.plane + row * m.pitch;
      for (int64_t f = 0; f < m.phases; ++f, out += m.phase)
        copy_row(plane + y * s.width, y < 0 || y >= s.height ? 0 : s.width, f - s.padding[1],
                 s.stride[1], m.phase, out);
    }
  }
}

// The floats of one run; a short one may write a vector, the next run and column write over it.
EVOPRUNE_INLINE void copy_run(const float* from, float* to, int64_t length, bool loose) {
  if (length >= kLanes) {
    int64_t t = 0;
    for (; t + kLanes <= length; t += kLanes) store(to + t, load(from + t));
    if (t < length) store(to + length - kLanes, load(from + length - kLanes));
  } else if (loose) {
    store(to, load(from));
  } else {
    for (int64_t t = 0; t < length; ++t) to[t] = from[t];
  }
}

// The runs of positions [first, first + count) that lie side by side; returns how many.
int find_runs(const ConvShape& s, const ConvImage& m, int64_t first, int64_t count, Run* runs) {
  const int64_t out_width = s.out(1), positions = s.positions();
  const bool merged = m.row == out_width;  // the rows of a plane are side by side
  int found = 0;
  for (int64_t t = 0; t < count;) {
    const int64_t image = (first + t) / positions, position = (first + t) % positions;
    const int64_t column = position % out_width;
    const int64_t left = merged ? positions - position : out_width - column;
    const int64_t length = left < count - t ? left : count - t;
    runs[found++] = {image * m.image + position / out_width * m.row + column, length};
    t += length;
  }
  return found;
}

void fill_panel(const ConvPanelArgs& a, int64_t first, int64_t count, int64_t width, float* panel) {
  const ConvShape& s = a.shape;
  Run runs[kMostRuns];
  const int found = find_runs(s, a.layout, first, count, runs);
  const int64_t columns = s.columns();
  for (int64_t k = 0; k < columns; ++k, panel += width) {
    if (a.offsets[k] < 0) continue;
    const float* from = a.image + a.offsets[k];
    const bool loose = a.loose && k + 1 < columns;  // not into the next panel
    float* to = panel;
    for (int r = 0; r < found; to += runs[r++].length)
      copy_run(from + runs[r].from, to, runs[r].length, loose);
    for (int64_t t = count; t < width; ++t) panel[t] = 0.0f;
  }
  for (int64_t i = 0; i < (a.padded - columns) * width; ++i) panel[i] = 0.0f;
}

}  // namespace

void conv_image(const ConvImageArgs& a, int64_t begin, int64_t end) {
  a.dtype == DType::f32 ? planes<float>(a, begin, end) : planes<bf16>(a, begin, end);
}

void conv_panels(const ConvPanelArgs& a, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p) {
    const int64_t first = p * a.width, left = a.count - first;
    const int64_t count = left < a.width ? left : a.width;
    const int64_t width = a.whole ? a.width : (count + kLanes - 1) / kLanes * kLanes;
    fill_panel(a, a.first + first, count, width, a.panels + first * a.padded);
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
