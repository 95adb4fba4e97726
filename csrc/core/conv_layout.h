// A convolution as a product with a matrix: where the input of an output position lies. Torch-free.
//
//   y[b, n, p] = act(sum over k of W[n, k] * x[b, column k of position p]),   k = (c * kh + i) * kw + j
//
// k runs as weight.reshape(N, -1) does, which is the order that a pattern was pruned in. The input is
// first copied with its padding into an *image*, once, so that no tap is outside of it; with a stride,
// columns of the same remainder lie side by side (phases), so that positions next to each other always
// read floats next to each other:
//
//   one padded row, stride 2      a0 b0 a1 b1 a2 b2 ..   ->   a0 a1 a2 .. | b0 b1 b2 ..
//                                                             phase 0       phase 1
//
//   offset of column k     c * plane + i * dilation * pitch + (j * dilation % s) * phase + j * dilation / s
//   offset of position     b * image + oy * row + ox
//
// What no tap reads is left out: with kh = 1 the rows between strides, with kw = 1 the other phases.
#pragma once

#include <cstdint>

namespace evoprune {

struct ConvShape {
  int64_t images, channels, height, width, out_channels;
  int64_t kernel[2], stride[2], padding[2], dilation[2];  // of rows and of columns

  int64_t input(int d) const { return d == 0 ? height : width; }
  int64_t out(int d) const {
    return (input(d) + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) / stride[d] + 1;
  }
  int64_t positions() const { return out(0) * out(1); }  // of one image
  int64_t columns() const { return channels * kernel[0] * kernel[1]; }
};

struct ConvImage {
  int64_t rows, row_step;        // rows of a plane; padded rows from one to the next
  int64_t phases, phase, pitch;  // floats of a phase and of a row
  int64_t plane, image;          // floats of a channel and of all of them
  int64_t row;                   // floats from the row of an output position to that of the next
  bool direct;                   // x of float32 is an image as it is
};

inline ConvImage conv_image(const ConvShape& s) {
  ConvImage m{};
  const auto reach = [&](int d) { return s.dilation[d] * (s.kernel[d] - 1); };
  m.row_step = s.kernel[0] == 1 ? s.stride[0] : 1;
  m.phases = s.kernel[1] == 1 ? 1 : s.stride[1];
  m.rows = s.kernel[0] == 1 ? s.out(0) : (s.out(0) - 1) * s.stride[0] + reach(0) + 1;
  m.phase = s.kernel[1] == 1 ? s.out(1) : s.out(1) + reach(1) / s.stride[1];
  m.direct = s.stride[0] == 1 && s.stride[1] == 1 && s.padding[0] == 0 && s.padding[1] == 0;
  m.pitch = m.phases * m.phase;
  m.plane = m.rows * m.pitch;
  m.image = s.channels * m.plane;
  m.row = s.kernel[0] == 1 ? m.pitch : s.stride[0] * m.pitch;
  return m;
}

// The offsets of all columns.
inline void conv_offsets(const ConvShape& s, const ConvImage& m, int64_t* out) {
  for (int64_t c = 0; c < s.channels; ++c)
    for (int64_t i = 0; i < s.kernel[0]; ++i)
      for (int64_t j = 0; j < s.kernel[1]; ++j) {
        const int64_t column = j * s.dilation[1], phase = column % s.stride[1] * m.phase;
        *out++ = c * m.plane + i * s.dilation[0] * m.pitch + phase + column / s.stride[1];
      }
}

}  // namespace evoprune
