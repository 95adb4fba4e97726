// The type that a weight's values are stored in, from a number that is known at run time.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace evoprune::EVOPRUNE_ISA {

// Calls run.template operator()<T>().
template <typename Run>
EVOPRUNE_INLINE void with_stored(DType type, Run run) {
  switch (type) {
    case DType::f32:
      return run.template operator()<float>();
    case DType::bf16:
      return run.template operator()<bf16>();
    case DType::i8:
      return run.template operator()<int8_t>();
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
