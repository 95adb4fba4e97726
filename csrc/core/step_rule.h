// Which importance a fused optimizer step advances; shared by the CPU and the CUDA kernels.
#pragma once

#include <cstdint>

namespace evoprune {

enum class StepRule : int32_t { none = 0, evolution = 1, taylor = 2 };

}  // namespace evoprune
