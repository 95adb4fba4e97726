// The table of CPU kernels: one entry an op, filled once for every ISA level, chosen when the
// library is loaded.
//
// Kernels are torch-free: raw pointers, sizes, and a range [begin, end) of independent work units,
// so that the caller (csrc/ops) owns checks, allocation and threads. An entry's struct says what
// one work unit is.
#pragma once

#include <cstdint>

namespace evoprune {

enum class DType : int32_t { f32 = 0, bf16 = 1 };

// In the order of ACTIVATIONS in evoprune_kernels/ops/_linear.py.
enum class Activation : int32_t { none, relu, gelu, gelu_tanh, silu };

// What a linear kernel does with its sums; see cpu/epilogue.h.
struct Epilogue {
  const void* bias;  // [N] or null
  DType bias_dtype;
  Activation activation;
};

// scores [rows, columns] -> mask [rows, columns]; a work unit is a row.
struct SelectNmArgs {
  const float* scores;
  uint8_t* mask;
  int64_t columns;
  int n, m;
};

struct Kernels {
  const char* level;
  void (*select_nm)(const SelectNmArgs&, int64_t begin, int64_t end);
};

const Kernels& kernels();            // the level in use
bool set_level(const char* level);   // false if unknown or not runnable here
bool level_runs(const char* level);  // built, and this CPU has the instructions

}  // namespace evoprune
