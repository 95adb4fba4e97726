// The table of CPU kernels: one entry an op, filled once for every ISA level, chosen when the
// library is loaded.
//
// Kernels are torch-free: raw pointers, sizes, and a range [begin, end) of independent work units,
// so that the caller (csrc/ops) owns checks, allocation and threads. An entry's struct says what
// one work unit is.
#pragma once

#include <cstdint>

#include "core/activation.h"
#include "core/step_rule.h"
#include "cpu/conv_panels.h"
#include "cpu/gates.h"
#include "cpu/probes.h"
#include "importance/average.h"

namespace evoprune {

// i8 only where a weight is stored; its rows have a scale (Epilogue).
enum class DType : int32_t { f32 = 0, bf16 = 1, i8 = 2 };

// A sum of many terms is taken in pieces of about this many, each from zero and then added to the
// total: the rounding error of one running sum would grow with its length, and pass torch's.
inline constexpr int kSumPiece = 64;

// What a linear kernel does with its sums; see cpu/epilogue.h.
struct Epilogue {
  const void* bias;  // [N] or null
  DType bias_dtype;
  Activation activation;
  const float* scale;  // [N] or null: of the rows of a weight stored as i8
  DType y_dtype;       // f32 or bf16
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
struct StepList {
  const StepTensor* tensors;
  int64_t count;
  DType param_dtype, state_dtype;
  StepRule rule;
  StepPoint point;
  importance::Average average;  // of the importance
  float sparse_decay;           // where decays_masked
  float grad_scale;             // gradients are divided by it when `scaled`
  float sign;                   // 1, or -1 to maximize
  bool scaled;
  bool decays_masked;  // masked weights decay by sparse_decay and are not zeroed
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
  bool whole;  // the last panel is as wide as the others
};

// The vectors of a panel that a strip of 16 rows is multiplied with (cpu/strip_panels.cpp).
inline constexpr int kWideVectors = 3;

// A weight in strips (cpu/strips.h) times panels of x; a work unit is a tile of 16 rows. With strips
// of 16 rows group_tokens pass a tile of weights while it is in L2.
struct StripArgs {
  const float* x;  // rows [tokens, padded] or panels
  void* y;         // [tokens, out_features] of epilogue.y_dtype
  const void* values;
  const int32_t* row_ptr;
  const void* columns;
  int64_t tokens, out_features, padded;
  int strip, bk;  // rows of a strip, columns of an entry
  int panel_vectors;
  int64_t group_tokens;
  bool narrow;  // columns are uint16; of 16-row strips with bk = 1, and of a bitmask
  DType dtype;  // of values
  Epilogue epilogue;
  Planes planes;
};

// x [rows, columns] of either dtype -> float, zeros from column K on (cpu/pack_rows.cpp): rows, or
// panels of `panel` rows. A work unit is a panel (a row where panel = 1).
struct PackRowsArgs {
  const void* x;
  DType dtype;
  int64_t rows, columns;
  float* out;
  int64_t out_stride;  // columns of a row of out, a multiple of 4 where panel > 1
  int panel;
};

// Dense weight and mask -> canonical nm tensors, and back; a work unit is a row.
struct NmPackArgs {
  const void* weight;   // [rows, columns]
  const uint8_t* mask;  // [rows, columns]
  DType dtype;
  int64_t columns, kept, meta_bytes;
  int n, m;
  void* values;        // [rows, kept]
  uint8_t* meta;       // [rows, meta_bytes]
  int64_t* over_full;  // [rows]: the first column of a group that keeps too many, or -1
};
struct NmUnpackArgs {
  const void* values;   // [rows, kept]
  const uint8_t* meta;  // [rows, meta_bytes]
  DType dtype;
  int64_t columns, kept, meta_bytes;
  int n, m;
  void* dense;  // [rows, columns]
};

// Canonical nm tensors -> layout "cpu" (core/nm_layout.h); a work unit is a tile of 16 rows.
struct NmPrepareArgs {
  const void* values;   // [rows, kept]
  const uint8_t* meta;  // [rows, meta_bytes]; shared: [tiles, meta_bytes]
  DType dtype;
  int64_t rows, kept, meta_bytes, slots;
  int n, m;
  void* out_values;  // [tiles, slots, 16]
  void* out_meta;    // int32 [tiles, words, 16]; shared: the columns [tiles, kept]
  int32_t* worst;    // [tiles]: the largest index of the tile
  bool shared;       // 16 rows share one row of meta, and slots = kept
  bool narrow;       // columns are uint16, not int32
};

// y = act(x W^T + bias), W in layout "cpu"; a work unit is a (token block, row tile) pair: unit
// block * tiles + tile. A block of nm_linear is block_tokens, of nm_linear_tokens panel_tokens.
struct NmLinearArgs {
  const float* x;  // rows or panels; padded to what the last slot may read
  bool panels;
  int64_t tokens, x_stride, token_step, group_step;  // steps in floats: tokens, groups of m
  const void* values;
  const int32_t* meta;
  DType dtype;  // of values
  int64_t rows, slots;
  int n, m;
  int64_t block_tokens;  // a multiple of kNmPanel
  int panel_tokens;      // of nm_linear_tokens: 16, 32 or 64
  int64_t piece_bytes;   // of a panel that stay in L1 while tiles pass
  int64_t l2_bytes;
  void* y;  // [tokens, rows] of epilogue.y_dtype, or in planes
  Epilogue epilogue;
  Planes planes;  // of nm_linear_tokens
};

// x [tokens, columns] -> int8 with a scale a token (cpu/w8a8_quantize.cpp); a work unit is a panel.
inline constexpr int kW8a8Panel = 8;
struct QuantizeArgs {
  const void* x;
  DType dtype;
  int64_t tokens, columns;
  int8_t* out;      // [panels, stride, panel]
  int8_t* scratch;  // as large as out; where panel > 1
  int64_t stride;   // columns of a row or panel of out
  int panel;        // tokens: 1 or kW8a8Panel
  float* scale;     // [tokens]
};

// y = act(x W^T + b) in int8 arithmetic, W in strips of 16 rows; a work unit is a strip. What the
// lines of a strip read of x (cpu/w8a8_linear.cpp): runs of columns, columns picked by the strip, or
// by each row. In the order of PICKS in evoprune_kernels/ops/w8a8_linear/__init__.py.
enum class Picks : int32_t { run, strip, row };
struct W8a8Args {
  const int8_t* x;  // rows or panels of w8a8_quantize
  const float* x_scale;
  int64_t tokens, x_stride;
  int panel;
  const int8_t* values;
  const int32_t* row_ptr;
  const void* columns;
  const int32_t* row_sums;      // [strips, 16]
  int64_t out_features, lines;  // lines of an entry
  Picks picks;
  bool narrow;  // columns are uint16; where the strip picks
  void* y;
  Epilogue epilogue;
};

struct Kernels {
  const char* level;
  int lanes;
  void (*select_nm)(const SelectNmArgs&, int64_t begin, int64_t end);
  void (*pack_rows)(const PackRowsArgs&, int64_t begin, int64_t end);
  void (*nm_pack)(const NmPackArgs&, int64_t begin, int64_t end);
  void (*nm_unpack)(const NmUnpackArgs&, int64_t begin, int64_t end);
  void (*nm_prepare)(const NmPrepareArgs&, int64_t begin, int64_t end);
  void (*nm_linear)(const NmLinearArgs&, int64_t begin, int64_t end);
  void (*nm_linear_tokens)(const NmLinearArgs&, int64_t begin, int64_t end);
  void (*adamw_step)(const AdamwStepArgs&, int64_t begin, int64_t end);
  void (*sgd_step)(const SgdStepArgs&, int64_t begin, int64_t end);
  void (*pack_panels)(const PanelArgs&, int64_t begin, int64_t end);
  void (*block_linear)(const StripArgs&, int64_t begin, int64_t end);
  void (*bitmask_linear)(const StripArgs&, int64_t begin, int64_t end);
  void (*conv_image)(const ConvImageArgs&, int64_t begin, int64_t end);
  void (*conv_panels)(const ConvPanelArgs&, int64_t begin, int64_t end);
  void (*strip_panels)(const StripArgs&, int64_t begin, int64_t end);
  void (*probe_read)(const ProbeReadArgs&, int64_t begin, int64_t end);
  void (*probe_fma)(const ProbeFmaArgs&, int64_t begin, int64_t end);
  void (*probe_stream)(const ProbeStreamArgs&, int64_t begin, int64_t end);
  void (*w8a8_quantize)(const QuantizeArgs&, int64_t begin, int64_t end);
  void (*w8a8_linear)(const W8a8Args&, int64_t begin, int64_t end);
  ChannelKernels channels;
};

const Kernels& kernels();            // the level in use
bool set_level(const char* level);   // false if unknown or not runnable here
bool level_runs(const char* level);  // built, and this CPU has the instructions

}  // namespace evoprune
