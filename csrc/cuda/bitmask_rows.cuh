// Rows of a bitmask weight in shared memory, for the kernels of bitmask_linear.
//
//   a block: kRows rows, kColumns columns at a time; eight threads bring a row, each a strip of it
//
//   words    row r | word 0, where its values begin | word 1, .. | ..     8 bytes for 32 columns
//   values   row r | rest of a sector | the row's values of these columns | ..   as they are in memory
//
// A thread loads the bits of its strip; their population counts, added up over the eight, tell where in
// the row's values those of each word begin. Then the values come, 16 bytes at a time, by cp.async.
// Every value and bit is read once in whole sectors: the sector between the values of two turns is
// moved inside of shared memory.
//
// Who reads takes a piece of a row at a time, four neighbouring columns a lane (float: two):
//
//   lane l   bits 4 (l % 8) .. + 3 of word l / 8    1 0 1 1   values begin + the number of bits before
//
// so the lanes of one load read in ascending order what lies side by side, and meet in a bank only where
// the piece has more than 128 bytes of values: where more than half is kept, int8 never.
//
// A row_ptr that contradicts bits cannot lead outside of a tensor: rows are clamped to the values that
// there are, spare bits are ignored and a row ends where its bits or its values end. Whether both
// agree is BitmaskWeight.validate's to say; the device is not asked in every call.
#pragma once

#include "cuda/bitmask_linear.h"
#include "cuda/ptx.cuh"
#include "cuda/tile.cuh"
#include "cuda/types.cuh"

namespace evoprune::cuda::bitmask {

constexpr int kOfRow = 8;  // threads that bring a row
constexpr uint32_t kAll = 0xffffffffu;

template <typename S, int kRowsOfBlock, int kColumnsOfChunk>
struct Chunk {
  using Stored = S;
  static constexpr int kSize = sizeof(S), kRows = kRowsOfBlock, kColumns = kColumnsOfChunk;
  static constexpr int kThreads = kRows * kOfRow;
  static constexpr int kOfLane = kSize == 4 ? 2 : 4, kPiece = 32 * kOfLane;  // columns
  static constexpr int kStrip = kColumns / kOfRow;          // columns of a thread's bits
  static constexpr int kWords = kStrip / 32;                // of a thread
  static constexpr int kWordsRow = kColumns / 32 * 8;       // bytes
  static constexpr int kValuesRow = kColumns * kSize + 64;  // bytes: sectors begin and end anywhere
  static constexpr int kBytes = kRows * (kWordsRow + kValuesRow);
  static_assert(kWords == 2 || kWords == 4, "a thread stores 16 bytes of words once or twice");
};

// ---- bits ----
// kWords words of bits from `column` on of a row, those beyond the last column as 0.
template <int kWords>
__device__ __forceinline__ void load_bits(uint32_t (&w)[kWords], const uint8_t* row, int64_t column,
                                          int64_t columns) {
  const int64_t left = columns - column;
#pragma unroll
  for (int i = 0; i < kWords; ++i) w[i] = 0;
  if (left <= 0) return;
  const uint8_t* from = row + column / 8;
  using Words = Vector<uint32_t, kWords>;
  if (left >= 32 * kWords && reinterpret_cast<uintptr_t>(from) % sizeof(Words) == 0) {
    const Words all = *reinterpret_cast<const Words*>(from);
#pragma unroll
    for (int i = 0; i < kWords; ++i) w[i] = all.at[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
#pragma unroll 1
    for (int b = 0; b < 32; b += 8)
      if (32 * i + b < left) w[i] |= static_cast<uint32_t>(from[4 * i + b / 8]) << b;
    const int64_t valid = left - 32 * i;
    if (valid < 32) w[i] &= valid <= 0 ? 0 : (1u << valid) - 1;
  }
}

// Clears the highest `count` bits that are set, or all.
template <int kWords>
__device__ __forceinline__ void clear_last(uint32_t (&w)[kWords], int count) {
#pragma unroll
  for (int i = kWords - 1; i >= 0; --i)
    for (; count > 0 && w[i] != 0; --count) w[i] &= ~(0x80000000u >> __clz(w[i]));
}

// ---- to shared memory ----
// What one of the eight threads of a row knows of it.
template <typename C>
class RowSource {
  using S = typename C::Stored;

 public:
  // Row n of the weight, to the row of shared memory that is the thread's; n may lie beyond the last.
  __device__ __forceinline__ RowSource(const BitmaskLinearArgs& args, int64_t n, uint32_t words,
                                       uint32_t values)
      : to_words_(words + threadIdx.x / kOfRow * C::kWordsRow),
        to_values_(values + threadIdx.x / kOfRow * C::kValuesRow),
        bits_(args.bits + n * ((args.columns + 7) / 8)),
        column_(strip() * C::kStrip),
        columns_(n < args.rows ? args.columns : 0) {
    int64_t from = 0, to = 0;
    if (n < args.rows) {
      from = args.row_ptr[n];
      to = args.row_ptr[n + 1];
      from = from < 0 ? 0 : from < args.count ? from : args.count;
      to = to < from ? from : to < args.count ? to : args.count;
    }
    tensor_start_ = reinterpret_cast<uintptr_t>(args.values);
    tensor_end_ = tensor_start_ + args.count * C::kSize;
    at_ = tensor_start_ + from * C::kSize;
    end_ = tensor_start_ + to * C::kSize;
    sector_ = loaded_ = at_ / 32 * 32;
    load_bits(next_, bits_, column_, columns_);
  }

  // Starts the copies of the next kColumns columns. The bits of those after them are on their way.
  __device__ __forceinline__ void bring() {
    uint32_t w[C::kWords];
    int begin[C::kWords + 1] = {};  // of each word's values within the strip
#pragma unroll
    for (int i = 0; i < C::kWords; ++i) {
      w[i] = next_[i];
      begin[i + 1] = begin[i] + __popc(w[i]);
    }
    int upto = begin[C::kWords];
#pragma unroll
    for (int d = 1; d < kOfRow; d *= 2) {
      const int before = __shfl_up_sync(kAll, upto, d, kOfRow);
      if (strip() >= d) upto += before;
    }
    int total = __shfl_sync(kAll, upto, kOfRow - 1, kOfRow);
    const int64_t left = static_cast<int64_t>(end_ - at_) / C::kSize;
    if (total > left) {  // more bits than values: the first ones count
      total = static_cast<int>(left);
      clear_last(w, upto - total);
    }
    const int start = static_cast<int>(at_ % 32);
    store_words(w, begin, to_values_ + start + (upto - begin[C::kWords]) * C::kSize);
    copy(start + total * C::kSize);
    at_ += total * C::kSize;
    column_ += C::kColumns;
    load_bits(next_, bits_, column_, columns_);
  }

 private:
  static __device__ __forceinline__ int strip() { return threadIdx.x % kOfRow; }

  // Lanes 0 .. 3 and 4 .. 7 store their halves in turns: neighbours are 32 bytes apart.
  __device__ __forceinline__ void store_words(const uint32_t (&w)[C::kWords],
                                              const int (&begin)[C::kWords + 1], uint32_t values) {
    const uint32_t to = to_words_ + strip() * C::kWords * 8;
    uint32_t half[C::kWords / 2][4];
#pragma unroll
    for (int i = 0; i < C::kWords; ++i) {
      half[i / 2][i % 2 * 2] = w[i];
      half[i / 2][i % 2 * 2 + 1] = values + begin[i] * C::kSize;
    }
    if constexpr (C::kWords == 2) {
      ptx::store_shared16(to, half[0]);
    } else {
      const bool second = strip() >= kOfRow / 2;
      uint32_t first[4], then[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        first[i] = second ? half[1][i] : half[0][i];
        then[i] = second ? half[0][i] : half[1][i];
      }
      ptx::store_shared16(to + (second ? 16 : 0), first);
      ptx::store_shared16(to + (second ? 0 : 16), then);
    }
  }

  // The sectors of bytes [0, bytes) from that of `at_` on.
  __device__ __forceinline__ void copy(int bytes) {
    const uintptr_t first = at_ / 32 * 32;
    const bool known = loaded_ > first;  // of the sector of `at_`
    uint32_t moved[4] = {};
    if (known && strip() < 2)
      ptx::load_shared16(moved, to_values_ + static_cast<uint32_t>(first - sector_) + 16 * strip());
    __syncwarp();
    if (known && strip() < 2) ptx::store_shared16(to_values_ + 16 * strip(), moved);
    sector_ = first;
    const bool some = bytes > static_cast<int>(at_ - first);
    const int whole = some ? (bytes + 31) / 32 * 32 : 0;
    const int from = 16 * strip() + (known ? 32 : 0);
    if (first >= tensor_start_ && first + whole <= tensor_end_) {
      const char* data = reinterpret_cast<const char*>(first) + from;
#pragma unroll 1
      for (int i = from; i < whole; i += 16 * kOfRow, data += 16 * kOfRow)
        ptx::cp_async16(to_values_ + i, data);
    } else {
#pragma unroll 1
      for (int i = from; i < whole; i += 16 * kOfRow) copy_each(to_values_ + i, first + i);
    }
    if (some) loaded_ = first + whole;
  }
  // 16 bytes, of which those outside of the tensor are 0.
  __device__ __forceinline__ void copy_each(uint32_t to, uintptr_t from) {
    if (from >= tensor_start_ && from + 16 <= tensor_end_)
      return ptx::cp_async16(to, reinterpret_cast<const void*>(from));
    uint32_t w[4];
    gather16(w, reinterpret_cast<const S*>(from), [&](int i) {
      const uintptr_t at = from + i * C::kSize;
      return at >= tensor_start_ && at < tensor_end_;
    });
    ptx::store_shared16(to, w);
  }

  uint32_t to_words_, to_values_;
  const uint8_t* bits_;
  int64_t column_, columns_;
  uint32_t next_[C::kWords];
  uintptr_t at_, end_;         // addresses of the row's values that are left
  uintptr_t sector_, loaded_;  // what shared memory begins with; up to where it has been read
  uintptr_t tensor_start_, tensor_end_;
};

// ---- out of shared memory ----
// A lane's columns of a piece: which of them are kept, and where the first of these is.
struct Kept {
  uint32_t bits;  // the lowest kOfLane; others follow
  uint32_t at;    // shared address
};

// Where a lane finds its columns.
template <typename C>
class KeptReader {
 public:
  __device__ __forceinline__ explicit KeptReader(uint32_t words) {
    constexpr int kOfWord = 32 / C::kOfLane;  // lanes
    const int lane = threadIdx.x % 32;
    words_ = words + lane / kOfWord * 8;
    shift_ = lane % kOfWord * C::kOfLane;
    before_ = (1u << shift_) - 1;
  }
  // A piece of row `row`; row kRow of those after it.
  __device__ __forceinline__ uint32_t place(int row, int piece) const {
    return words_ + row * C::kWordsRow + piece * (C::kPiece / 4);
  }
  template <int kRow>
  __device__ __forceinline__ Kept read(uint32_t place) const {
    const uint2 word = ptx::ld_shared8<kRow * C::kWordsRow>(place);
    return {word.x >> shift_, word.y + __popc(word.x & before_) * C::kSize};
  }

 private:
  uint32_t words_, before_;  // of its word in the first piece of row 0; bits before its own
  int shift_;
};

}  // namespace evoprune::cuda::bitmask
