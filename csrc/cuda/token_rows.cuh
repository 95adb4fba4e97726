// Rows of x into shared memory as they lie in memory, by cp.async.
//
//   token m | kColumns columns | room up to kRowBytes |    what lies beyond the last token or column is 0
//
// A thread has the same 16 bytes of every token, or of every second one, ..: one address and constants
// serve all of its copies. Rows that do not start at 16 bytes are read element by element.
#pragma once

#include "cuda/ptx.cuh"
#include "cuda/types.cuh"

namespace evoprune::cuda {

template <typename T, int kColumns, int kRowBytes, int kThreads>
struct TokenRows {
  static constexpr int kPer16 = kPer16Bytes<T>, kOfRow = kColumns / kPer16;  // threads
  static constexpr int kApart = kThreads / kOfRow;                           // tokens
  static_assert(kThreads % kOfRow == 0 && kRowBytes % 16 == 0, "threads share whole rows");

  // Columns [first, first + count) of `tokens` rows from `x` [.., columns] on; `rows` are written.
  // Starts the copies.
  static __device__ __forceinline__ void stage(uint32_t to, const T* x, int64_t columns, int tokens,
                                               int rows, int64_t first, int count) {
    const int column = static_cast<int>(threadIdx.x) % kOfRow * kPer16;
    if (column >= count) return;
    int m = threadIdx.x / kOfRow;
    const bool wide = columns % kPer16 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
    const int64_t left = columns - first - column;
    const T* from = x + m * columns + first + column;
    to += m * kRowBytes + column * static_cast<int>(sizeof(T));
    if (wide && left > 0) {
#pragma unroll 1
      for (; m < tokens; m += kApart, from += kApart * columns, to += kApart * kRowBytes)
        ptx::cp_async16(to, from);
    }
#pragma unroll 1
    for (; m < rows; m += kApart, from += kApart * columns, to += kApart * kRowBytes) {
      uint32_t w[4];
      gather16(w, from, [&](int i) { return m < tokens && i < left; });
      ptx::store_shared16(to, w);
    }
  }
};

}  // namespace evoprune::cuda
