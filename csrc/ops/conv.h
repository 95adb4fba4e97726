// What the bindings of the convolutions share: shapes, the image, panels, y, threads.
#pragma once

#include <memory>
#include <new>
#include <vector>

#include "ops/channel_checks.h"
#include "ops/strips.h"

namespace evoprune::binding {

// The sizes of a convolution; checked. The channels of x have to be `in_channels`.
struct ConvSizes {
  int64_t out_channels, in_channels;
  const std::vector<int64_t>&kernel, &stride, &padding, &dilation;
};
ConvShape conv_shape(const Tensor& x, const ConvSizes& sizes);

// Whether the convolution is a linear layer over the positions of x as they lie.
bool is_linear(const ConvShape& shape, const Tensor& x);
// [B, C, H, W] -> [B, H, W, C] and back, as views.
Tensor tokens_view(const Tensor& x);
Tensor images_view(const Tensor& tokens);

// A product of a weight with panels of positions: how wide they are, and how to run it.
struct ConvProduct {
  int64_t width, padded;  // positions and columns of a panel
  bool whole;             // as ConvPanelArgs
  int64_t units;          // of `run` for one panel, or for all of them where not by_panel
  bool by_panel;          // units are counted panel by panel
  // The units [begin, end) of the product of `count` positions from `first` on, their panels at x.
  void (*run)(const void* self, const float* x, int64_t first, int64_t count, void* y,
              Planes planes, int64_t begin, int64_t end);
  const void* self;
};

// y [B, N, H', W'], stored as x is. `used` [padded]: 0 where no weight reads the column; null: all.
Tensor conv2d(const Tensor& x, const ConvShape& shape, const ConvProduct& product,
              const uint8_t* used);

// The convolution with a weight in strips; `args` holds what strip_linear asks for.
Tensor strip_conv2d(const Tensor& x, const ConvShape& shape, const Prepared& weight,
                    StripArgs args);

}  // namespace evoprune::binding
