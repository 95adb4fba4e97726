// The kernel of block_linear and block_linear_dx; the files of those two describe it.
#pragma once

#include "cuda/block_linear.h"
#include "cuda/block_sums.cuh"
#include "cuda/block_tile.cuh"
#include "cuda/launch.cuh"

namespace evoprune::cuda {

template <typename T, int kTile>
struct BlockGeometry {
  static constexpr BlockTile kShape = kBlockTiles[kTile];
  static constexpr int kTokens = kShape.tokens, kOutputs = kShape.outputs;
  static constexpr int kStages = kShape.stages, kParts = kShape.warps_inputs;
  static constexpr int kWarps = kShape.warps_tokens * kShape.warps_outputs;  // of one pipeline
  static constexpr int kThreads = 32 * kWarps * kParts;
  static constexpr int kMTiles = kTokens / kShape.warps_tokens / 16;
  static constexpr int kNTiles = kOutputs / kShape.warps_outputs / 8;
  static constexpr int kStageBytes = (kTokens + kOutputs) * kStepBytes;  // x, then the weight
  static constexpr int kPipelineBytes = kStages * kStageBytes;
  using Sums = SumTile<kTokens, kOutputs>;
  static constexpr int kCopiesBytes = kParts * kPipelineBytes, kSumsBytes = kParts * Sums::kBytes;
  static constexpr int kSharedBytes = kCopiesBytes > kSumsBytes ? kCopiesBytes : kSumsBytes;
  static_assert(kNTiles % 2 == 0, "a b fragment is 16 outputs wide");
  static_assert(kSharedBytes <= kLeastSharedBytes, "a thread block fits every device");
  static_assert(kParts == 1 || kWarps == 1, "a pipeline is a warp or the whole thread block");
};

// One thread's share of the copies: its piece of 16 bytes of every step, for some rows of x and of
// the weight. The kept blocks of a block row, one behind the other, are the summed dimension; a
// position there is block * edge_in + column. The index of a step is read a step ahead.
template <typename T, int kTile, bool kTransposed>
class BlockCopy {
  using G = BlockGeometry<T, kTile>;
  using Tall = TallCopy<T, G::kOutputs, 32 * G::kWarps>;
  static constexpr int kWide = kPer16Bytes<T>;
  static constexpr int kApart = 32 * G::kWarps / 8;  // rows from one copy of a thread to the next
  static constexpr int kXRows = G::kTokens / kApart;
  static constexpr int kWRows = kTransposed ? Tall::kRows : G::kOutputs / kApart;

 public:
  // `thread` of its pipeline; the first position is that of pipeline `part`.
  __device__ __forceinline__ BlockCopy(const BlockProductArgs& args, uint32_t shared, int thread,
                                       int part, int64_t block_row, int first_output,
                                       int64_t first_token)
      : args_(args), shift_(args.edge_in_bits) {
    const int begin = args.row_ptr[block_row];
    total_ = (args.row_ptr[block_row + 1] - begin) << shift_;
    indices_ = args.col_idx + begin;
    const int row = thread / 8, piece = thread % 8;
    position_ = part * kStep<T> + piece * kWide;
    x_to_ = shared + WideTile::place(row, piece);
    x_ = static_cast<const char*>(args.x) + first_token * args.inputs * kSize;
#pragma unroll
    for (int i = 0; i < kXRows; ++i) {  // past the last token: the last one again, not stored
      const int64_t left = args.tokens - 1 - first_token, token = row + i * kApart;
      x_rows_[i] = static_cast<uint32_t>((token < left ? token : left) * args.inputs * kSize);
    }
    w_ = static_cast<const char*>(args.values);
    w_to_ = shared + G::kTokens * kStepBytes;
    if constexpr (kTransposed) {
      blocks_ = args.order + begin;
      w_position_ = part * kStep<T> + Tall::row(thread);
      w_to_ += Tall::Tile::place(Tall::row(thread), Tall::piece(thread));
      w_ += (first_output + Tall::piece(thread) * kWide) * kSize;
    } else {
      w_ += static_cast<int64_t>(begin) * args.edge_out * args.edge_in * kSize +
            (first_output + row) * args.edge_in * kSize;
      w_to_ += WideTile::place(row, piece);
    }
    read_indices();
  }

  // Steps of this pipeline.
  __device__ __forceinline__ int steps(int part) const {
    const int all = (total_ + kStep<T> - 1) / kStep<T>;
    return (all - part + G::kParts - 1) / G::kParts;
  }

  // The next step into the stage that begins at `stage`.
  __device__ __forceinline__ void operator()(uint32_t stage) {
    const bool inside = position_ < total_;
    const int in_block = position_ & (args_.edge_in - 1);
    const uint32_t column = (static_cast<uint32_t>(index_) << shift_) + in_block;
    const int x_bytes = inside && column < args_.inputs ? 16 : 0;
    const char* x = x_ + static_cast<uint64_t>(column) * kSize;
#pragma unroll
    for (int i = 0; i < kXRows; ++i) {
      ptx::cp_async16(place(x_to_ + stage, i), x + x_rows_[i], x_bytes);
    }
    if constexpr (kTransposed)
      copy_rows_down(stage);
    else
      copy_rows_along(stage, inside ? 16 : 0, in_block);
    position_ += G::kParts * kStep<T>;
    read_indices();
  }

 private:
  static constexpr int kSize = static_cast<int>(sizeof(T));

  // Where a thread's row i of a WideTile goes, from where its first goes.
  static __device__ __forceinline__ uint32_t place(uint32_t first, int i) {
    return (first ^ (kApart * i & 7) << 4) + kApart * i * kStepBytes;
  }

  __device__ __forceinline__ void read_indices() {
    if (position_ < total_) index_ = indices_[position_ >> shift_];
    if constexpr (kTransposed)
      if (w_position_ < total_) block_ = blocks_[w_position_ >> shift_];
  }

  // Rows of the blocks are outputs: the same position as x.
  __device__ __forceinline__ void copy_rows_along(uint32_t stage, int bytes, int in_block) {
    const int64_t block = static_cast<int64_t>(position_ >> shift_) << shift_;
    const char* w = w_ + (block * args_.edge_out + in_block) * kSize;
    const int64_t apart = static_cast<int64_t>(kApart) * kSize << shift_;
#pragma unroll
    for (int i = 0; i < kWRows; ++i) {
      ptx::cp_async16(place(w_to_ + stage, i), w, bytes);
      w += apart;
    }
  }

  // Rows of the blocks are positions, all of this thread's in one block.
  __device__ __forceinline__ void copy_rows_down(uint32_t stage) {
    const int64_t in_block = w_position_ & (args_.edge_in - 1);
    const int64_t row = (static_cast<int64_t>(block_) << shift_) + in_block;
    const int bytes = w_position_ < total_ ? 16 : 0;
    const char* w = w_ + row * args_.edge_out * kSize;
#pragma unroll
    for (int i = 0; i < kWRows; ++i) {
      ptx::cp_async16(Tall::place(w_to_ + stage, i), w, bytes);
      w += Tall::kApart * args_.edge_out * kSize;
    }
    w_position_ += G::kParts * kStep<T>;
  }

  const BlockProductArgs& args_;
  const char *x_, *w_;
  const int32_t *indices_, *blocks_ = nullptr;
  uint32_t x_to_, w_to_, x_rows_[kXRows];
  int shift_, total_, position_, w_position_ = 0, index_ = 0, block_ = 0;
};

template <typename T, int kTile, bool kTransposed>
__global__ void __launch_bounds__(BlockGeometry<T, kTile>::kThreads)
    block_product_kernel(const __grid_constant__ BlockProductArgs args) {
  using G = BlockGeometry<T, kTile>;
  extern __shared__ __align__(128) char shared[];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int part = warp / G::kWarps, member = warp % G::kWarps;
  const int row = member / G::kShape.warps_outputs * G::kMTiles * 16;
  const int column = member % G::kShape.warps_outputs * G::kNTiles * 8;
  const int64_t out_tiles = (args.outputs + G::kOutputs - 1) / G::kOutputs;
  const int64_t first_output = blockIdx.x % out_tiles * G::kOutputs;
  const int64_t first_token = blockIdx.x / out_tiles * G::kTokens;
  const int64_t block_row = first_output / args.edge_out;

  const uint32_t pipeline = ptx::shared_address(shared) + part * G::kPipelineBytes;
  BlockCopy<T, kTile, kTransposed> copy(
      args, pipeline, static_cast<int>(threadIdx.x) % (32 * G::kWarps), part, block_row,
      static_cast<int>(first_output - block_row * args.edge_out), first_token);
  const int steps = copy.steps(part);
#pragma unroll
  for (int s = 0; s < G::kStages - 1; ++s) {
    if (s < steps) copy(s * G::kStageBytes);
    ptx::cp_async_commit();
  }

  float sums[G::kMTiles][G::kNTiles][4] = {};
  const uint32_t x_lane = pipeline + row * kStepBytes + WideTile::lane_a(lane);
  const uint32_t w_tile = pipeline + G::kTokens * kStepBytes;
  const uint32_t w_lane = w_tile + column * kStepBytes + WideTile::lane_b(lane);
  const TallReader<T, G::kOutputs, G::kNTiles / 2, false> w_down(w_tile, column, lane);
  uint32_t stage = 0, free_stage = (G::kStages - 1) * G::kStageBytes;
#pragma unroll 1
  for (int s = 0; s < steps; ++s) {
    wait_for_copies<G::kStages - 2, G::kWarps == 1>();
    if (s + G::kStages - 1 < steps) copy(free_stage);
    ptx::cp_async_commit();
#pragma unroll
    for (int k = 0; k < kMmaSteps; ++k) {
      uint32_t a[G::kMTiles][4], b[G::kNTiles / 2][4];
#pragma unroll
      for (int i = 0; i < G::kMTiles; ++i)
        ptx::ldmatrix_x4(a[i], ((x_lane + stage) ^ (k << 5)) + 16 * i * kStepBytes);
#pragma unroll
      for (int j = 0; j < G::kNTiles / 2; ++j) {
        if constexpr (kTransposed)
          w_down(b[j], j, k, stage);
        else
          ptx::ldmatrix_x4(b[j], ((w_lane + stage) ^ (k << 5)) + 16 * j * kStepBytes);
      }
      multiply<T>(sums, a, b);
    }
    free_stage = stage;
    stage = stage == (G::kStages - 1) * G::kStageBytes ? 0 : stage + G::kStageBytes;
  }

  ptx::cp_async_wait<0>();
  __syncthreads();  // the sums take the place of the copies
  G::Sums::put(ptx::shared_address(shared) + part * G::Sums::kBytes, sums, row, column, lane);
  __syncthreads();
  const Destination<T> to{static_cast<T*>(args.y) + first_token * args.outputs + first_output,
                          args.outputs, args.tokens - first_token, args.outputs - first_output,
                          first_output};
  store_tile<T, G::kTokens, G::kOutputs, G::kParts, G::kThreads>(shared, to, args.epilogue);
}

template <typename T, int kTile, bool kTransposed>
void launch_block_product(const BlockProductArgs& args, cudaStream_t stream) {
  using G = BlockGeometry<T, kTile>;
  const int64_t blocks =
      ceil_div(args.outputs, int64_t{G::kOutputs}) * ceil_div(args.tokens, int64_t{G::kTokens});
  launch(block_product_kernel<T, kTile, kTransposed>, dim3(static_cast<unsigned>(blocks)),
         G::kThreads, G::kSharedBytes, stream, args);
}

template <typename T, bool kTransposed>
void launch_block_product(const BlockProductArgs& args, cudaStream_t stream) {
  switch (
      choose_block_tile(args.edge_out, args.tokens, args.outputs, args.processors, !kTransposed)) {
    case 0:
      if constexpr (!kTransposed) launch_block_product<T, 0, kTransposed>(args, stream);
      break;
    case 1:
      return launch_block_product<T, 1, kTransposed>(args, stream);
    case 2:
      return launch_block_product<T, 2, kTransposed>(args, stream);
    case 3:
      return launch_block_product<T, 3, kTransposed>(args, stream);
    default:
      return launch_block_product<T, 4, kTransposed>(args, stream);
  }
}

template <bool kTransposed>
void launch_block_product(const BlockProductArgs& args, cudaStream_t stream) {
  if (args.tokens == 0 || args.outputs == 0) return;
  if (args.dtype == DType::f32) return launch_block_product<float, kTransposed>(args, stream);
  if (args.dtype == DType::f16) return launch_block_product<__half, kTransposed>(args, stream);
  launch_block_product<__nv_bfloat16, kTransposed>(args, stream);
}

}  // namespace evoprune::cuda
