// block_linear_dw: the gradient of a weight of kept blocks, on the kept blocks only.
//
//   values.grad[e, i, j] = sum over tokens m of dY[m, row_idx[e] * bn + i] * x[m, col_idx[e] * bk + j]
//
//   dY [tokens, N]          x [tokens, K]             values.grad [nnz, bn, bk]
//     . [bn] . .              . . [bk] .                e: | bn x bk |   row after row, no gaps
//     . [bn] . .              . . [bk] .
//     . [bn] . .  block row   . . [bk] .  block column
//
//   grid     x: a thread block for each tile of each kept block: the block itself, or tiles of it
//            with the widest edge (at most 128) that divides both of its edges; y: parts of the
//            tokens, where that many tiles leave processors idle (split_block_grad, block_linear.h)
//   block    walks down the tokens of its part, 64 a step (f32: 32), by a cp.async pipeline of 3 or
//            4 stages; its warps share the tile (64: 32x32 each, 128: 32x64). Tiles of 16 and 32
//            belong to one warp: there four warps take every fourth step, a pipeline each, and
//            their sums are added at the end, in the order of the warps
//   lane     tokens lie down in both operands: ldmatrix.trans for both; f32 is read word by word
//
// A single part goes straight to values.grad. Several go to a workspace [splits, nnz, bn, bk] of
// float, and a second kernel adds them: a thread has four sums, and all of their parts.
//
// Sums are float; f32 operands are rounded to tf32 (block_tile.cuh says with what error). The
// result is the same in every run on one kind of device: parts are added in ascending order, and
// how many there are depends on the shape and the number of processors alone. Columns past the
// matrix are copied as zeros, so the padding of values.grad is 0, as the format wants it; NaN and
// infinity of a token spread as in the dense product, within their columns.
//
// Bounded by L2 reads of dY and x: a tile of edge E reads 4 E bytes a token for E^2 products, at
// full tensor speed of an A100 (16-bit) 4096 / E bytes a clock of an SM; L2 gives about 47. So
// blocks of 128 can run at full speed, 64 at 70 %, 32 and 16 at 35 and 18 %.
//
// By tile, edges of 16, 32, 64, 128. Registers on sm_80: 40, 72, 71, 131, f32: 40, 77, 93, 150, no
// spills, no stack. PTX instructions a warp for each mma, step after step, 16-bit: 10.0, 5.0, 3.8,
// 2.6.
//
// Source: Gale et al., "Sparse GPU Kernels for Deep Learning" (SDDMM), SC 2020; Narang et al.,
// "Block-Sparse Recurrent Neural Networks", 2017.
#include <type_traits>

#include "cuda/block_linear.h"
#include "cuda/block_sums.cuh"
#include "cuda/block_tile.cuh"
#include "cuda/launch.cuh"
#include "cuda/types.cuh"

namespace evoprune::cuda {

inline constexpr int kAddThreads = 256;

// How a launch splits the tokens, and where the parts of the sums go.
struct SplitSums {
  float* parts;  // [splits, count], or null: one part, straight to values.grad
  int64_t splits;
  int64_t tokens;  // of a part
  int64_t count;   // of the sums: nnz * bn * bk
};

namespace {

template <typename T, int kTile>
struct GradGeometry {
  static constexpr BlockGradTile kShape = kBlockGradTiles[kTile];
  static constexpr int kEdge = kShape.edge, kStages = kShape.stages;
  static constexpr int kParts = kShape.warps_tokens;
  static constexpr int kWarps = kShape.warps_outputs * kShape.warps_inputs;  // of one pipeline
  static constexpr int kThreads = 32 * kWarps * kParts;
  static constexpr int kRound = kParts * kStep<T>;  // tokens of a step of every pipeline
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
  // From row `first` and column `column` of `data` [tokens, columns].
  __device__ __forceinline__ TokenCopy(const void* data, int64_t columns, int64_t first,
                                       int64_t column, uint32_t shared, int thread) {
    column += Tall::piece(thread) * kPer16Bytes<T>;
    const int64_t row = first + Tall::row(thread);
    inside_ = column < columns ? 16 : 0;
    from_ = static_cast<const char*>(data) + (row * columns + column) * kSize;
    apart_ = Tall::kApart * columns * kSize;
    step_ = G::kRound * columns * kSize;
    to_ = ptx::kept(shared + Tall::Tile::place(Tall::row(thread), Tall::piece(thread)));
  }

  // The first of the rows of a step that the thread copies.
  static __device__ __forceinline__ int row(int thread) { return Tall::row(thread); }

  // The next step into the stage that begins at `stage`; `left` tokens remain from that row on.
  __device__ __forceinline__ void operator()(uint32_t stage, int64_t left) {
    const char* from = from_;
#pragma unroll
    for (int i = 0; i < Tall::kRows; ++i) {
      ptx::cp_async16(Tall::place(to_ + stage, i), from, Tall::kApart * i < left ? inside_ : 0);
      from += apart_;
    }
    from_ += step_;
  }

 private:
  const char* from_;
  int64_t apart_, step_;
  uint32_t to_;
  int inside_;
};

}  // namespace

template <typename T, int kTile>
__global__ void __launch_bounds__(GradGeometry<T, kTile>::kThreads)
    block_linear_dw_kernel(const __grid_constant__ BlockGradArgs args,
                           const __grid_constant__ SplitSums split) {
  using G = GradGeometry<T, kTile>;
  extern __shared__ __align__(128) char shared[];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int thread = static_cast<int>(threadIdx.x % (32 * G::kWarps));
  const int part = warp / G::kWarps, member = warp % G::kWarps;
  const int row = member / G::kShape.warps_inputs * G::kMTiles * 16;
  const int column = member % G::kShape.warps_inputs * G::kNTiles * 8;
  const unsigned across = static_cast<unsigned>(args.edge_in) / G::kEdge;
  const unsigned tiles = static_cast<unsigned>(args.edge_out) / G::kEdge * across;
  const int64_t block = blockIdx.x / tiles;
  const int tile_row = blockIdx.x % tiles / across * G::kEdge;
  const int tile_column = blockIdx.x % tiles % across * G::kEdge;

  const int64_t begin = blockIdx.y * split.tokens, first = begin + part * kStep<T>;
  const uint32_t pipeline = ptx::shared_address(shared) + part * G::kPipelineBytes;
  TokenCopy<T, kTile> copy_grad(args.grad, args.outputs, first,
                                int64_t{args.row_idx[block]} * args.edge_out + tile_row, pipeline,
                                thread);
  TokenCopy<T, kTile> copy_x(args.x, args.inputs, first,
                             int64_t{args.col_idx[block]} * args.edge_in + tile_column,
                             pipeline + G::kTileBytes, thread);
  const int64_t end = begin + split.tokens < args.tokens ? begin + split.tokens : args.tokens;
  int64_t left = end - first;
  const int64_t steps = left <= 0 ? 0 : (left + G::kRound - 1) / G::kRound;
  left -= TokenCopy<T, kTile>::row(thread);
  const auto copy = [&](uint32_t stage) {
    copy_grad(stage, left);
    copy_x(stage, left);
    left -= G::kRound;
  };
#pragma unroll
  for (int s = 0; s < G::kStages - 1; ++s) {
    if (s < steps) copy(s * G::kStageBytes);
    ptx::cp_async_commit();
  }

  float sums[G::kMTiles][G::kNTiles][4] = {};
  TallReader<T, G::kEdge, G::kMTiles, true> read_grad(pipeline, row, lane);
  TallReader<T, G::kEdge, G::kNTiles / 2, false> read_x(pipeline + G::kTileBytes, column, lane);
  read_grad.keep();
  read_x.keep();
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
  const auto store = [&](auto* values) {
    using To = std::remove_pointer_t<decltype(values)>;
    const Destination<To> to{values + corner, args.edge_in, G::kEdge, G::kEdge, 0};
    store_tile<To, G::kEdge, G::kEdge, G::kParts, G::kThreads>(shared, to, Epilogue{});
  };
  if (split.parts == nullptr)
    store(static_cast<T*>(args.values));
  else
    store(split.parts + blockIdx.y * split.count);
}

// Adds the parts of split sums: a thread has 4 of them.
template <typename T>
__global__ void __launch_bounds__(kAddThreads)
    block_add_parts_kernel(T* values, const SplitSums split) {
  using Four = Vector<float, 4>;
  const int64_t i = 4 * (static_cast<int64_t>(blockIdx.x) * kAddThreads + threadIdx.x);
  if (i >= split.count) return;
  const float* from = split.parts + i;
  Four sum = *reinterpret_cast<const Four*>(from);
#pragma unroll 8
  for (int64_t s = 1; s < split.splits; ++s) {
    from += split.count;
    const Four part = *reinterpret_cast<const Four*>(from);
#pragma unroll
    for (int c = 0; c < 4; ++c) sum.at[c] += part.at[c];
  }
  Vector<T, 4> out;
#pragma unroll
  for (int c = 0; c < 4; ++c) out.at[c] = from_float<T>(sum.at[c]);
  *reinterpret_cast<Vector<T, 4>*>(values + i) = out;
}

namespace {

int64_t tiles_of_block(const BlockGradArgs& args, int edge) {
  return int64_t{args.edge_out / edge} * (args.edge_in / edge);
}

BlockGradSplit split_of(const BlockGradArgs& args, const DeviceLimits& limits) {
  const BlockGradTile& tile = kBlockGradTiles[choose_block_grad_tile(args.edge_out, args.edge_in)];
  const int step = args.dtype == DType::f32 ? kStep<float> : kStep<__half>;
  return split_block_grad(args.count * tiles_of_block(args, tile.edge), args.tokens,
                          tile.warps_tokens * step, limits.processors);
}

template <typename T, int kTile>
void launch_tile(const BlockGradArgs& args, const SplitSums& split, cudaStream_t stream) {
  using G = GradGeometry<T, kTile>;
  const dim3 grid(static_cast<unsigned>(args.count * tiles_of_block(args, G::kEdge)),
                  static_cast<unsigned>(split.splits));
  launch(block_linear_dw_kernel<T, kTile>, grid, G::kThreads, G::kSharedBytes, stream, args, split);
  if (split.parts == nullptr) return;
  const auto blocks = static_cast<unsigned>(ceil_div(split.count, 4 * kAddThreads));
  launch(block_add_parts_kernel<T>, blocks, kAddThreads, 0, stream, static_cast<T*>(args.values),
         split);
}

template <typename T>
void launch_dtype(const BlockGradArgs& args, const SplitSums& split, cudaStream_t stream) {
  switch (choose_block_grad_tile(args.edge_out, args.edge_in)) {
    case 0:
      return launch_tile<T, 0>(args, split, stream);
    case 1:
      return launch_tile<T, 1>(args, split, stream);
    case 2:
      return launch_tile<T, 2>(args, split, stream);
    default:
      return launch_tile<T, 3>(args, split, stream);
  }
}

}  // namespace

int64_t block_linear_dw_workspace(const BlockGradArgs& args, const DeviceLimits& limits) {
  if (args.count == 0) return 0;
  const int64_t splits = split_of(args, limits).splits;
  return splits == 1 ? 0 : splits * args.count * args.edge_out * args.edge_in * 4;
}

void block_linear_dw(const BlockGradArgs& args, const DeviceLimits& limits, void* workspace,
                     cudaStream_t stream) {
  if (args.count == 0) return;
  const BlockGradSplit plan = split_of(args, limits);
  const SplitSums split{plan.splits == 1 ? nullptr : static_cast<float*>(workspace), plan.splits,
                        plan.tokens, args.count * args.edge_out * args.edge_in};
  if (args.dtype == DType::f32) return launch_dtype<float>(args, split, stream);
  if (args.dtype == DType::f16) return launch_dtype<__half>(args, split, stream);
  launch_dtype<__nv_bfloat16>(args, split, stream);
}

}  // namespace evoprune::cuda
