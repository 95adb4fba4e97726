// The activations that a linear kernel can fuse, in the order of ACTIVATIONS in ops/_linear.py.
#pragma once

#include <cstdint>

namespace evoprune {

enum class Activation : int32_t { none, relu, gelu, gelu_tanh, silu };

}  // namespace evoprune
