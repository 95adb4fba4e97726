// The table of CPU kernels: one entry an op, filled once for every ISA level, chosen when the
// library is loaded.
//
// Kernels are torch-free: raw pointers, sizes, and a range [begin, end) of independent work units,
// so that the caller (csrc/ops) owns checks, allocation and threads. An entry's struct says what
// one work unit is.
#pragma once

#include <cstdint>

#include "importance/average.h"

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

// Optimizer steps. One tensor of the list: raw pointers to dense memory in one common order, and
// what differs between tensors. A null pointer is a feature that is off.
struct StepTensor {
  void* param;           // w, of param_dtype
  void* grad;            // g, of param_dtype; written only when the list is scaled
  void* moment;          // m of AdamW, the momentum buffer of SGD; of state_dtype
  void* square;          // v of AdamW
  void* largest_square;  // largest v of AdamW, with amsgrad
  float* importance;
  const uint8_t* mask;  // one byte an element, 0 = pruned
  int64_t numel;
  int64_t first_chunk;     // chunks before this tensor; increasing over the list
  float step_size;         // AdamW: lr / (1 - beta1**step)
  float root_correction2;  // AdamW: sqrt(1 - beta2**step)
  bool first_step;         // SGD: the momentum buffer is not yet initialised
};

// The list, and what the optimizers share. A work unit is a chunk of kStepChunk elements.
inline constexpr int64_t kStepChunk = 16384;
enum class StepRule : int32_t { none = 0, evolution = 1, taylor = 2 };
struct StepList {
  const StepTensor* tensors;
  int64_t count;
  DType param_dtype, state_dtype;
  StepRule rule;
  importance::Average average;  // of the importance
  float grad_scale;  // gradients are divided by it when `scaled`
  float sign;        // 1, or -1 to maximize
  bool scaled;
};

struct AdamwStepArgs {
  StepList list;
  importance::Average first_moment;
  float beta2, square_weight, eps;
  float weight_factor;  // 1 - lr * weight_decay
};

struct SgdStepArgs {
  StepList list;
  float lr, momentum, undampened, weight_decay;  // undampened = 1 - dampening
  bool decays, nesterov;
};

// x [tokens, columns] -> float panels (cpu/pack_panels.cpp); a work unit is a panel.
struct PanelArgs {
  const void* x;
  float* panels;  // room for tokens rounded up to whole panels, times padded
  int64_t tokens, columns, padded;
  int vectors;  // of a panel; 0: a panel is one token's row
  DType dtype;
};

// A weight in strips (cpu/strips.h) times panels of x; a work unit is a tile of 16 rows.
struct StripArgs {
  const float* x;  // rows [tokens, padded] or panels
  void* y;         // [tokens, out_features]
  const void* values;
  const int32_t* row_ptr;
  const void* columns;
  int64_t tokens, out_features, padded;
  int strip, bk;  // rows of a strip, columns of an entry
  int panel_vectors;
  bool narrow;  // columns are uint16
  DType dtype;
  Epilogue epilogue;
};

struct Kernels {
  const char* level;
  int lanes;
  void (*select_nm)(const SelectNmArgs&, int64_t begin, int64_t end);
  void (*adamw_step)(const AdamwStepArgs&, int64_t begin, int64_t end);
  void (*sgd_step)(const SgdStepArgs&, int64_t begin, int64_t end);
  void (*pack_panels)(const PanelArgs&, int64_t begin, int64_t end);
  void (*block_linear)(const StripArgs&, int64_t begin, int64_t end);
  void (*bitmask_linear)(const StripArgs&, int64_t begin, int64_t end);
};

const Kernels& kernels();            // the level in use
bool set_level(const char* level);   // false if unknown or not runnable here
bool level_runs(const char* level);  // built, and this CPU has the instructions

}  // namespace evoprune
