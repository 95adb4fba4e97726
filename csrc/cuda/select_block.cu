// select_block: the bn x bk blocks of the highest total score are kept.
//
//   mask[r, c] = rank of sums[r / bn, c / bk] among all blocks < keep
//
//   scores [rows, columns]     +-- bk --+-- bk --+ tail
//                           bn |        |        |      |   blocks cut off by the edge sum what
//                              +--------+--------+------+   they have
//   1 sums fp64    block: all rows of a row of blocks x up to 1024 columns of whole blocks
//                  thread: 16 bytes of neighbouring columns, down the rows; then a tree in
//                  registers and shared memory (bk above 1024: a block takes piece after piece)
//   2 kept bytes   radix select of the sums (radix_select.cuh)
//   3 mask         thread: 16 columns of up to 8 rows of a block, one store of 16 bytes a row
//
// Order of the sums, the same in the reference, so that masks agree bit by bit: each column from the
// top row down; then columns in a tree, neighbours first ((c0 + c1) + (c2 + c3)) ..., within pieces
// of 1024 columns; then pieces from left to right. All in fp64: two equal blocks have equal sums.
//
// Bound by memory: scores read once, mask written once, and 8 + 7 * 8 + 2 bytes a block. With bn = 1
// the tree's instructions bound it (about 80 a score, 8 with bn = 16); a matrix of few, large blocks
// has too few thread blocks to reach either bound.
// Ties: the lowest block wins, row by row. A block that holds a NaN ranks below every other.
// Source: Narang et al., "Block-Sparse Recurrent Neural Networks", 2017.
#include "cuda/radix_select.cuh"
#include "cuda/select_block.h"

namespace evoprune::cuda {

namespace {

constexpr int kPiece = 1024, kMaskThreads = 256, kMaskRows = 8;

}  // namespace

struct BlockSums {
  const void* scores;
  double* sums;  // [block rows, block columns]
  int64_t rows, columns, bn, block_columns;
  uint32_t bk;
  uint32_t span;   // columns of a thread block: whole blocks, or one that is wider than kPiece
  uint32_t spans;  // thread blocks of a row of blocks
  bool aligned;    // each vector of a row: 16 aligned bytes
  int own;         // neighbouring columns that a thread adds up alone, all of a block: kPer or 1
};

// Sums of this thread's columns over the rows [top, bottom): kPer neighbours where aligned, else one
// of every `threads`; `scores` starts at the piece, which has `width` columns.
template <typename T>
__device__ __forceinline__ void sum_columns(const BlockSums& args, const T* scores, int64_t top,
                                            int64_t bottom, int width,
                                            double (&sums)[kPer16Bytes<T>]) {
  constexpr int kPer = kPer16Bytes<T>, kThreads = kPiece / kPer;
  const int thread = threadIdx.x;
#pragma unroll
  for (int i = 0; i < kPer; ++i) sums[i] = 0.0;
  if (args.aligned) {
    if (thread * kPer >= width) return;
#pragma unroll 4
    for (int64_t r = top; r < bottom; ++r) {
      const auto values = load_bits(scores + r * args.columns + thread * kPer);
#pragma unroll
      for (int i = 0; i < kPer; ++i) sums[i] += static_cast<double>(to_float(values.at[i]));
    }
    return;
  }
#pragma unroll 1
  for (int64_t r = top; r < bottom; ++r) {
    const T* row = scores + r * args.columns;
#pragma unroll
    for (int i = 0; i < kPer; ++i)
      if (thread + i * kThreads < width)
        sums[i] += static_cast<double>(to_float(row[thread + i * kThreads]));
  }
}

// Halves groups of `length` entries, neighbours first, until one entry each is left: where they are.
__device__ __forceinline__ const double* sum_groups(double* from, double* to, int groups,
                                                    int length, int threads) {
  for (; length > 1; length = (length + 1) / 2) {
    const int half = (length + 1) / 2;
    for (int i = threadIdx.x; i < groups * half; i += threads) {
      if (length % 2 == 0) {  // pairs do not cross groups: pair i is entries 2i and 2i + 1
        const double2 both = reinterpret_cast<const double2*>(from)[i];
        to[i] = both.x + both.y;
        continue;
      }
      const int pair = i % half, at = i / half * length + 2 * pair;
      to[i] = 2 * pair + 1 < length ? from[at] + from[at + 1] : from[at];
    }
    __syncthreads();
    double* const free = from;
    from = to;
    to = free;
  }
  return from;
}

template <typename T>
__global__ void __launch_bounds__(kPiece / kPer16Bytes<T>, sizeof(T) == 4 ? 4 : 6)
    select_block_sums_kernel(const __grid_constant__ BlockSums args) {
  constexpr int kPer = kPer16Bytes<T>, kThreads = kPiece / kPer;
  // the first halving leaves at most two thirds: groups of three become pairs
  __shared__ __align__(16) double entries[kPiece], halves[kPiece * 2 / 3 + 2];
  const int64_t block_row = blockIdx.x / args.spans;
  const uint32_t first = blockIdx.x % args.spans * args.span;
  const int64_t left = args.columns - first, all = left < args.span ? left : args.span;
  const int64_t top = block_row * args.bn;
  const int64_t bottom = top + args.bn < args.rows ? top + args.bn : args.rows;
  const int per_block = static_cast<int>(args.bk < kPiece ? args.bk : kPiece);
  double* sum = args.sums + block_row * args.block_columns + first / args.bk;
  double total = 0.0;
  for (int64_t piece = 0; piece < all; piece += kPiece) {
    const int width = static_cast<int>(all - piece < kPiece ? all - piece : kPiece);
    double sums[kPer];
    const T* scores = static_cast<const T*>(args.scores) + first + piece;
    sum_columns(args, scores, top, bottom, width, sums);
#pragma unroll
    for (int level = 1; level < kPer; level *= 2)
      if (level < args.own)
#pragma unroll
        for (int i = 0; i + level < kPer; i += 2 * level) sums[i] += sums[i + level];
    if (args.own == kPer) {
      entries[threadIdx.x] = sums[0];
    } else {
#pragma unroll
      for (int i = 0; i < kPer; ++i)
        entries[args.aligned ? threadIdx.x * kPer + i : threadIdx.x + i * kThreads] = sums[i];
    }
    __syncthreads();
    const int blocks = (width + per_block - 1) / per_block;
    const double* found = sum_groups(entries, halves, blocks, per_block / args.own, kThreads);
    if (args.bk > kPiece) {
      total += found[0];
    } else {
      for (int i = threadIdx.x; i < blocks; i += kThreads) sum[i] = found[i];
    }
    __syncthreads();
  }
  if (args.bk > kPiece && threadIdx.x == 0) sum[0] = total;
}

// ---- the mask ----
struct BlockMask {
  const uint8_t* kept;  // [block rows, block columns]
  uint8_t* mask;
  int64_t rows, columns, bn;
  uint32_t bk, block_columns, pieces;  // pieces: of kMaskRows rows, of a row of blocks
  uint32_t across, all_pieces;         // thread blocks side by side; pieces of all rows of blocks
};

// kWidth mask bytes from column c on, four a word.
template <int kWidth>
__device__ __forceinline__ void bytes_of_blocks(const uint8_t* kept, uint32_t c, uint32_t bk,
                                                uint32_t block_columns,
                                                uint32_t (&words)[(kWidth + 3) / 4]) {
  uint32_t block = c / bk, left = bk - c % bk, byte = kept[block];
  if (left >= kWidth) {
#pragma unroll
    for (int w = 0; w < (kWidth + 3) / 4; ++w) words[w] = byte * 0x01010101u;
    return;
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    words[i / 4] = i % 4 == 0 ? byte : words[i / 4] | byte << 8 * (i % 4);
    if (--left == 0 && ++block < block_columns) {
      byte = kept[block];
      left = bk;
    }
  }
}

template <int kWidth>
__global__ void __launch_bounds__(kMaskThreads)
    select_block_mask_kernel(const __grid_constant__ BlockMask args) {
  const uint32_t column = (blockIdx.x % args.across * blockDim.x + threadIdx.x) * kWidth;
  const uint32_t piece = blockIdx.x / args.across * blockDim.y + threadIdx.y;
  if (column >= args.columns || piece >= args.all_pieces) return;
  const uint32_t block_row = piece / args.pieces;
  const int64_t start = static_cast<int64_t>(piece % args.pieces) * kMaskRows;
  const int64_t top = block_row * args.bn + start;
  int64_t count = args.bn - start < kMaskRows ? args.bn - start : kMaskRows;
  if (args.rows - top < count) count = args.rows - top;
  uint32_t words[(kWidth + 3) / 4];
  const uint8_t* kept = args.kept + static_cast<int64_t>(block_row) * args.block_columns;
  bytes_of_blocks<kWidth>(kept, column, args.bk, args.block_columns, words);
  uint8_t* mask = args.mask + top * args.columns + column;
  for (int64_t r = 0; r < count; ++r, mask += args.columns) {
    if constexpr (kWidth == 16)
      *reinterpret_cast<uint4*>(mask) = make_uint4(words[0], words[1], words[2], words[3]);
    else
      *mask = static_cast<uint8_t>(words[0]);
  }
}

namespace {

int64_t count_blocks(const SelectBlockArgs& a) {
  return ceil_div(a.rows, a.bn) * ceil_div(a.columns, a.bk);
}

RadixSelectArgs ranking(const SelectBlockArgs& a, const RankedTensor& sums) {
  return {&sums, 1, a.keep};
}

template <typename T>
void sum_blocks(const SelectBlockArgs& a, double* sums, cudaStream_t stream) {
  constexpr int kPer = kPer16Bytes<T>;
  int64_t step = a.bk, span = a.bk;  // step: columns of whole blocks and whole vectors
  while (step % kPer != 0) step *= 2;
  if (step <= kPiece)
    span = kPiece / step * step;
  else if (a.bk <= kPiece)
    span = kPiece / a.bk * a.bk;
  BlockSums args{a.scores,
                 sums,
                 a.rows,
                 a.columns,
                 a.bn,
                 ceil_div(a.columns, a.bk),
                 static_cast<uint32_t>(a.bk),
                 static_cast<uint32_t>(span),
                 static_cast<uint32_t>(ceil_div(a.columns, span)),
                 false,
                 1};
  args.aligned = a.columns % kPer == 0 && (args.span % kPer == 0 || args.spans == 1) &&
                 reinterpret_cast<uintptr_t>(a.scores) % 16 == 0;
  if (args.aligned && a.bk % kPer == 0) args.own = kPer;
  const int64_t blocks = ceil_div(a.rows, a.bn) * args.spans;
  launch(select_block_sums_kernel<T>, dim3(static_cast<unsigned>(blocks)), kPiece / kPer, 0, stream,
         args);
}

void expand(const SelectBlockArgs& a, const uint8_t* kept, cudaStream_t stream) {
  const bool wide = a.columns % 16 == 0;
  const int64_t vectors = wide ? a.columns / 16 : a.columns;
  int x = 1;
  while (x < kMaskThreads && x < vectors) x *= 2;
  const int y = kMaskThreads / x;
  const int64_t pieces = ceil_div(a.bn, kMaskRows), all = ceil_div(a.rows, a.bn) * pieces;
  const int64_t across = ceil_div(vectors, x);
  const BlockMask args{kept,
                       a.mask,
                       a.rows,
                       a.columns,
                       a.bn,
                       static_cast<uint32_t>(a.bk),
                       static_cast<uint32_t>(ceil_div(a.columns, a.bk)),
                       static_cast<uint32_t>(pieces),
                       static_cast<uint32_t>(across),
                       static_cast<uint32_t>(all)};
  launch(wide ? select_block_mask_kernel<16> : select_block_mask_kernel<1>,
         dim3(static_cast<unsigned>(across * ceil_div(all, y))), dim3(x, y), 0, stream, args);
}

}  // namespace

int64_t select_block_workspace(const SelectBlockArgs& args, const DeviceLimits& limits) {
  const int64_t blocks = count_blocks(args);
  const RankedTensor sums{nullptr, nullptr, blocks};
  return blocks * 8 + ceil_div(blocks, 8) * 8 +
         radix::plan<uint64_t>(ranking(args, sums), limits).bytes;
}

void select_block(const SelectBlockArgs& args, const DeviceLimits& limits, void* scratch,
                  cudaStream_t stream) {
  const int64_t blocks = count_blocks(args);
  double* sums = static_cast<double*>(scratch);
  uint8_t* kept = reinterpret_cast<uint8_t*>(sums + blocks);
  if (args.dtype == DType::f32)
    sum_blocks<float>(args, sums, stream);
  else if (args.dtype == DType::f16)
    sum_blocks<__half>(args, sums, stream);
  else
    sum_blocks<__nv_bfloat16>(args, sums, stream);
  const RankedTensor ranked{sums, kept, blocks};
  const RadixSelectArgs list = ranking(args, ranked);
  radix::select<uint64_t>(list, radix::plan<uint64_t>(list, limits), select::kInfinityF64,
                          sums + blocks + ceil_div(blocks, 8), stream);
  expand(args, kept, stream);
}

}  // namespace evoprune::cuda
