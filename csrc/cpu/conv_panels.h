// Arguments of the kernels of a convolution, and where their outputs go; drawn in core/conv_layout.h.
#pragma once

#include "core/conv_layout.h"

namespace evoprune {

enum class DType : int32_t;

// y of a product: by token, [tokens, rows], or in planes, [images, rows, size], token t of the product
// being position (first + t) % size of image (first + t) / size.
struct Planes {
  int64_t size;  // 0: by token
  int64_t first;
};

// x [images, channels, height, width] -> image, in float; a work unit is a plane of it.
struct ConvImageArgs {
  const void* x;
  DType dtype;
  float* image;
  ConvShape shape;
  ConvImage layout;
};

// image -> panels [columns][width] of the output positions from `first` on; a work unit is a panel.
struct ConvPanelArgs {
  const float* image;
  float* panels;  // of `padded` columns each
  ConvShape shape;
  ConvImage layout;
  const int64_t* offsets;  // [columns]; -1: no weight reads the column, it is left as it is
  int64_t first, count;    // positions
  int64_t width, padded;
  bool whole;  // the last panel is as wide as the others, else of as few vectors as it needs
  bool loose;  // a vector may be read beyond the end of a row
};

}  // namespace evoprune
