// nm_pack, nm_unpack, nm_prepare_cuda and nm_select_pack on the device.
//
//   nm_pack           nm_pack24.cu   2:4, columns a multiple of 16, aligned: one pass, 16 bytes a lane
//                     nm_pack.cu     any n:m, any shape; and which of the two runs
//   nm_unpack         nm_unpack.cu   likewise
//   nm_prepare_cuda   nm_prepare_cuda.cu
#pragma once

#include "cuda/fault.h"

namespace evoprune::cuda {

struct NmPackArgs {
  const void* weight;   // [rows, columns]
  const uint8_t* mask;  // [rows, columns], what is kept; or null: the n best of every m ..
  const void* scores;   // .. by these [rows, columns]
  DType dtype, scores_dtype;
  void* values;         // [rows, groups * n]
  uint8_t* meta;        // [rows, meta_bytes]
  void* cuda_values;    // layout "cuda" (core/nm_cuda_layout.h), 2:4 only, or null: not wanted
  uint32_t* cuda_meta;  // beside cuda_values
  Fault* fault;         // beside mask: (row * groups + group) * 64 + how many it keeps
  int64_t rows, columns;
  int n, m;
};

struct NmUnpackArgs {
  const void* values;   // [rows, groups * n]
  const uint8_t* meta;  // [rows, meta_bytes]
  void* dense;          // [rows, columns]
  DType dtype;
  int64_t rows, columns;
  int n, m;
};

struct NmPrepareCudaArgs {
  const void* values;   // [rows, groups * 2]
  const uint8_t* meta;  // [ceil(rows / shared), ceil(groups / 2)]
  void* cuda_values;    // [rows64, columns64 / 2]
  uint32_t* cuda_meta;  // [rows64/64, columns64/64, 32, 4]
  Fault* fault;         // row of meta * groups + group of indices that do not increase; or null
  int value_bytes;      // of one value; 1 takes the word order of int8
  int shared;           // rows a row of meta
  int64_t rows, columns;
};

inline int64_t nm_groups(int64_t columns, int m) {
  return ceil_div(columns, m);
}
inline bool aligned16(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

void nm_pack(const NmPackArgs& args, cudaStream_t stream);
void nm_pack24(const NmPackArgs& args, cudaStream_t stream);
void nm_unpack(const NmUnpackArgs& args, cudaStream_t stream);
void nm_prepare_cuda(const NmPrepareCudaArgs& args, cudaStream_t stream);

}  // namespace evoprune::cuda
