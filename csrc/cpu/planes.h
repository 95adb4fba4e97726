// The end of a product whose outputs lie in planes, as those of a convolution do: [images, rows, size].
#pragma once

#include "cpu/epilogue.h"

namespace evoprune::EVOPRUNE_ISA {

// act(sums * scale + bias) of one row to `count` places side by side.
EVOPRUNE_INLINE void write_run(void* y, int64_t index, const float* sums, int64_t count,
                               const Epilogue& e, int64_t row) {
  const Vec scale = broadcast(e.scale == nullptr ? 1.0f : e.scale[row]);
  const Vec bias = broadcast(load_bias(e, row, 1)[0]);
  void* out = token_outputs(y, index, 1, e);
  int64_t i = 0;
  if (e.y_dtype == DType::f32 && e.activation <= Activation::relu) {  // no call a vector
    const bool relu = e.activation == Activation::relu;
    float* to = static_cast<float*>(out);
    for (; i + kLanes <= count; i += kLanes) {
      const Vec z = fma(load(sums + i), scale, bias);
      store(to + i, relu ? (z < 0.0f ? zero() : z) : z);
    }
  }
  for (; i < count; i += kLanes) {
    const Vec z = count - i < kLanes ? load_first(sums + i, count - i) : load(sums + i);
    store_activated(out, fma(z, scale, bias), e, i, count - i);
  }
}

// sums [count][width]: `count` rows from `row` of `rows`, tokens [token, token + tokens).
inline void write_planes(void* y, const Planes& planes, const Epilogue& e, int64_t rows,
                         int64_t row, int64_t count, const float* sums, int64_t width,
                         int64_t token, int64_t tokens) {
  for (int64_t t = 0; t < tokens;) {
    const int64_t at = planes.first + token + t, image = at / planes.size;
    const int64_t place = at - image * planes.size, left = planes.size - place;
    const int64_t run = left < tokens - t ? left : tokens - t;
    for (int64_t r = 0; r < count; ++r)
      write_run(y, (image * rows + row + r) * planes.size + place, sums + r * width + t, run, e,
                row + r);
    t += run;
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
