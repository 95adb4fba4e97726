// block_linear_dw: the gradient of a weight of kept blocks, on the kept blocks only.
//
//   values.grad[e, i, j] = sum over tokens m of dY[m, row_idx[e] * bn + i] * x[m, col_idx[e] * bk + j]
//
//   dY [tokens, N]          x [tokens, K]             values.grad [nnz, bn, bk]
//     . [bn] . .              . . [bk] .                e: | bn x bk |   row after row, no gaps
//     . [bn] . .              . . [bk] .
//     . [bn] . .  block row   . . [bk] .  block column
//
//   grid     a thread block for each tile of each kept block: the block itself, or tiles of it with
//            the widest edge (at most 128) that divides both of its edges
//   block    walks down all tokens, 64 a step (f32: 32), by a cp.async pipeline of 3 or 4 stages;
//            its warps share the tile (64: 32x32 each, 128: 32x64). Tiles of 16 and 32 belong to
//            one warp: there four warps take every fourth step, a pipeline each, and their sums are
//            added at the end, in the order of the warps
//   lane     tokens lie down in both operands: ldmatrix.trans for both; f32 is read word by word
//
// Sums are float; f32 operands are rounded to tf32 (block_tile.cuh says with what error). The
// result is the same in every run: no sum depends on another thread block. Columns past the
// matrix are copied as zeros, so the padding of values.grad is 0, as the format wants it; NaN and
// infinity of a token spread as in the dense product, within their columns.
//
// Bounded by L2 reads of dY and x: a tile of edge E reads 4 E bytes a token for E^2 products, at
// full tensor speed of an A100 (16-bit) 4096 / E bytes a clock of an SM; L2 gives about 47. So
// blocks of 128 can run at full speed, 64 at 70 %, 32 and 16 at 35 and 18 %.
//
// By tile, edges of 16, 32, 64, 128. Registers on sm_80: 48, 91, 79, 128, f32: 54, 92, 95, 158, no
// spills, no stack. PTX instructions a warp for each mma, step after step, 16-bit: 9.8, 5.0, 3.8,
// 2.6.
//
// Source: Gale et al., "Sparse GPU Kernels for Deep Learning" (SDDMM), SC 2020; Narang et al.,
// "Block-Sparse Recurrent Neural Networks", 2017.
#include "cuda/block_linear.h"
#include "cuda/block_sums.cuh"
#include "cuda/block_tile.cuh"
#include "cuda/launch.cuh"

namespace evoprune::cuda {

namespace {

template <typename T, int kTile>
struct GradGeometry {
  static constexpr BlockGradTile kShape = kBlockGradTiles[kTile];
  static constexpr int kEdge = kShape.edge, kStages = kShape.stages;
  static constexpr int kParts = kShape.warps_tokens;
  static constexpr int kWarps = kShape.warps_outputs * kShape.warps_inputs;  // of one pipeline
  static constexpr int kThreads = 32 * kWarps * kParts;
  static constexpr int kMTiles = kEdge / kShape.warps_outputs / 16;
  static constexpr int kNTiles = kEdge / kShape.warps_inputs / 8;
  static constexpr int kTileBytes = kEdge * kStepBytes;
  static constexpr int kStageBytes = 2 * kTileBytes;  // dY, then x
  static constexpr int kPipelineBytes = kStages * kStageBytes;
  using Sums = SumTile<kEdge, kEdge>;
  static constexpr int kCopiesBytes = kParts * kPipelineBytes, kSumsBytes = kParts * Sums::kBytes;
  static constexpr int kSharedBytes = kCopiesBytes > kSumsBytes ? kCopiesBytes : kSumsBytes;
  static_assert(kNTiles % 2 == 0, "a b fragment is 16 inputs wide");
  static_assert(kSharedBytes <= kLeastSharedBytes, "a thread block fits every device");
  static_assert(kParts == 1 || kWarps == 1, "a pipeline is a warp or the whole thread block");
};

// One thread's share of the copies of one operand: its piece of 16 bytes of some tokens.
template <typename T, int kTile>
class TokenCopy {
  using G = GradGeometry<T, kTile>;
  using Tall = TallCopy<T, G::kEdge, 32 * G::kWarps>;
  static constexpr int kSize = static_cast<int>(sizeof(T));

 public:
  // From column `first` of `data` [tokens, columns].
  __device__ __forceinline__ TokenCopy(const void* data, int64_t columns, int64_t first,
                                       uint32_t shared, int thread, int part)
      : row_(Tall::row(thread)) {
    const int64_t column = first + Tall::piece(thread) * kPer16Bytes<T>;
    const int row = part * kStep<T> + row_;
    inside_ = column < columns ? 16 : 0;
    from_ = static_cast<const char*>(data) + (row * columns + column) * kSize;
    apart_ = Tall::kApart * columns * kSize;
    step_ = G::kParts * kStep<T> * columns * kSize;
    to_ = shared + Tall::Tile::place(row_, Tall::piece(thread));
  }

  // The next step into the stage that begins at `stage`; `left` tokens remain from its first on.
  __device__ __forceinline__ void operator()(uint32_t stage, int64_t left) {
    const char* from = from_;
#pragma unroll
    for (int i = 0; i < Tall::kRows; ++i) {
      ptx::cp_async16(Tall::place(to_ + stage, i), from,
                      row_ + Tall::kApart * i < left ? inside_ : 0);
      from += apart_;
    }
    from_ += step_;
  }

 private:
  const char* from_;
  int64_t apart_, step_;
  uint32_t to_;
  int inside_, row_;
};

}  // namespace

template <typename T, int kTile>
__global__ void __launch_bounds__(GradGeometry<T, kTile>::kThreads)
    block_linear_dw_kernel(const __grid_constant__ BlockGradArgs args) {
  using G = GradGeometry<T, kTile>;
  extern __shared__ __align__(128) char shared[];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int thread = static_cast<int>(threadIdx.x) % (32 * G::kWarps);
  const int part = warp / G::kWarps, member = warp % G::kWarps;
  const int row = member / G::kShape.warps_inputs * G::kMTiles * 16;
  const int column = member % G::kShape.warps_inputs * G::kNTiles * 8;
  const unsigned across = args.edge_in / G::kEdge, tiles = args.edge_out / G::kEdge * across;
  const int64_t block = blockIdx.x / tiles;
  const int tile_row = blockIdx.x % tiles / across * G::kEdge;
  const int tile_column = blockIdx.x % tiles % across * G::kEdge;

  const uint32_t pipeline = ptx::shared_address(shared) + part * G::kPipelineBytes;
  TokenCopy<T, kTile> copy_grad(args.grad, args.outputs,
                                int64_t{args.row_idx[block]} * args.edge_out + tile_row, pipeline,
                                thread, part);
  TokenCopy<T, kTile> copy_x(args.x, args.inputs,
                             int64_t{args.col_idx[block]} * args.edge_in + tile_column,
                             pipeline + G::kTileBytes, thread, part);
  constexpr int kApart = G::kParts * kStep<T>;  // tokens from one step of a pipeline to the next
  int64_t left = args.tokens - part * kStep<T>;
  const int64_t steps = left <= 0 ? 0 : (left + kApart - 1) / kApart;
  const auto copy = [&](uint32_t stage) {
    copy_grad(stage, left);
    copy_x(stage, left);
    left -= kApart;
  };
#pragma unroll
  for (int s = 0; s < G::kStages - 1; ++s) {
    if (s < steps) copy(s * G::kStageBytes);
    ptx::cp_async_commit();
  }

  float sums[G::kMTiles][G::kNTiles][4] = {};
  const TallReader<T, G::kEdge, G::kMTiles, true> read_grad(pipeline, row, lane);
  const TallReader<T, G::kEdge, G::kNTiles / 2, false> read_x(pipeline + G::kTileBytes, column,
                                                              lane);
  uint32_t stage = 0, free_stage = (G::kStages - 1) * G::kStageBytes;
#pragma unroll 1
  for (int64_t s = 0; s < steps; ++s) {
    wait_for_copies<G::kStages - 2, G::kWarps == 1>();
    if (s + G::kStages - 1 < steps) copy(free_stage);
    ptx::cp_async_commit();
#pragma unroll
    for (int k = 0; k < kMmaSteps; ++k) {
      uint32_t a[G::kMTiles][4], b[G::kNTiles / 2][4];
#pragma unroll
      for (int i = 0; i < G::kMTiles; ++i) read_grad(a[i], i, k, stage);
#pragma unroll
      for (int j = 0; j < G::kNTiles / 2; ++j) read_x(b[j], j, k, stage);
      multiply<T>(sums, a, b);
    }
    free_stage = stage;
    stage = stage == (G::kStages - 1) * G::kStageBytes ? 0 : stage + G::kStageBytes;
  }

  ptx::cp_async_wait<0>();
  __syncthreads();  // the sums take the place of the copies
  G::Sums::put(ptx::shared_address(shared) + part * G::Sums::kBytes, sums, row, column, lane);
  __syncthreads();
  const int64_t corner = (block * args.edge_out + tile_row) * args.edge_in + tile_column;
  const Destination<T> to{static_cast<T*>(args.values) + corner, args.edge_in, G::kEdge, G::kEdge,
                          0};
  store_tile<T, G::kEdge, G::kEdge, G::kParts, G::kThreads>(shared, to, Epilogue{});
}

namespace {

template <typename T, int kTile>
void launch_tile(const BlockGradArgs& args, cudaStream_t stream) {
  using G = GradGeometry<T, kTile>;
  const int64_t tiles = int64_t{args.edge_out / G::kEdge} * (args.edge_in / G::kEdge);
  launch(block_linear_dw_kernel<T, kTile>, dim3(static_cast<unsigned>(args.count * tiles)),
         G::kThreads, G::kSharedBytes, stream, args);
}

template <typename T>
void launch_dtype(const BlockGradArgs& args, cudaStream_t stream) {
  switch (choose_block_grad_tile(args.edge_out, args.edge_in)) {
    case 0:
      return launch_tile<T, 0>(args, stream);
    case 1:
      return launch_tile<T, 1>(args, stream);
    case 2:
      return launch_tile<T, 2>(args, stream);
    default:
      return launch_tile<T, 3>(args, stream);
  }
}

}  // namespace

void block_linear_dw(const BlockGradArgs& args, cudaStream_t stream) {
  if (args.count == 0) return;
  if (args.dtype == DType::f32) return launch_dtype<float>(args, stream);
  if (args.dtype == DType::f16) return launch_dtype<__half>(args, stream);
  launch_dtype<__nv_bfloat16>(args, stream);
}

}  // namespace evoprune::cuda
