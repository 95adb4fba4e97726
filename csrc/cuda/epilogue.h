// What a linear kernel does with its sums before they are stored: scale, bias, activation.
#pragma once

#include "core/activation.h"
#include "cuda/device.h"

namespace evoprune::cuda {

struct Epilogue {
  const float* scale;  // [N] or null: of the rows of a weight stored as int8
  const void* bias;    // [N] or null
  DType bias_dtype;
  Activation activation;
};

}  // namespace evoprune::cuda
