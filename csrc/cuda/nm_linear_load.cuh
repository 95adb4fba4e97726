// Stages of a product with a 2:4 weight: from global memory into shared memory.
//
//   a stage    W   values  [rows, 32 steps bytes]     swizzled (tile.cuh)
//              x           [tokens, 64 steps bytes]   swizzled
//              W   meta    [rows/64, columns/64, 32 lanes, 16 bytes]
//
// A thread copies the same chunk of every kPass-th row, so one address and constants serve all of
// its copies. Three ways in, chosen by the block as a whole:
//
//   whole     the tile lies inside W and x: nothing but the copies
//   edge      copies outside fill with zeros and read nothing; metadata outside is that of a
//             neighbour, whose indices are legal and meet zeros
//   elements  rows of x that do not start at 16 bytes: element by element
#pragma once

#include "cuda/nm_plan.h"
#include "cuda/ptx.cuh"
#include "cuda/tile.cuh"

namespace evoprune::cuda {

// kNmTiles[kIndex] for values of T, and what follows from it.
template <typename T, int kIndex>
struct NmTile {
  static constexpr NmTileShape kShape = kNmTiles[kIndex];
  static constexpr int kBytes = sizeof(T), kPer16 = 16 / kBytes;
  static constexpr int kRows = kShape.rows, kTokens = kShape.tokens, kStages = kShape.stages;
  static constexpr int kThreads = kShape.threads(), kColumns = kShape.columns(kBytes);
  static constexpr int kARow = 32 * kShape.steps, kBRow = 64 * kShape.steps;  // bytes
  static constexpr int kB = kRows * kARow, kMeta = kB + kTokens * kBRow;      // offsets in a stage
  static constexpr int kStageBytes = kShape.stage_bytes(kBytes);
  static constexpr int kMetaTiles = kColumns / 64, kMetaCopies = kRows / 64 * kMetaTiles * 32;
  static constexpr int kAPass = kThreads * 16 / kARow, kBPass = kThreads * 16 / kBRow;  // rows
  static constexpr int kACopies = kRows / kAPass, kBCopies = kTokens / kBPass;

  static_assert(kAPass % 8 == 0 && kBPass % 8 == 0, "the swizzle repeats after 8 rows");
  static_assert(kB % 128 == 0 && kMeta % 128 == 0 && kStageBytes % 128 == 0,
                "a step is an exclusive or away from the one before it");
  static_assert(kMetaCopies <= kThreads && kMetaCopies % 32 == 0, "whole warps copy metadata");
  static_assert(kShape.steps / kShape.warps_k == 2, "a warp takes two steps of every stage");
};

// What a launch works on.
struct NmWork {
  const void* x;
  const void* values;
  const uint32_t* meta;
  int64_t tokens, rows, columns;
  int64_t x_stride;  // elements from a row of x to the next
  NmPlan plan;
};

// What a block works on: its corner of the output and its stages.
struct NmPlace {
  int64_t row, token, split, first_stage, stages;
};

// Blocks with neighbouring numbers share rows of W or tokens, in groups of kGroup tiles of rows, so
// that those that run at the same time read a square piece of the problem.
__device__ __forceinline__ NmPlace nm_place(const NmPlan& plan, int rows, int tokens) {
  constexpr uint32_t kGroup = 16;
  const auto row_tiles = static_cast<uint32_t>(plan.row_tiles);
  const uint32_t of_group = kGroup * static_cast<uint32_t>(plan.token_tiles);
  const uint32_t group = blockIdx.x / of_group, within = blockIdx.x % of_group;
  const uint32_t left = row_tiles - group * kGroup, height = left < kGroup ? left : kGroup;
  NmPlace place;
  place.row = static_cast<int64_t>(group * kGroup + within % height) * rows;
  place.token = static_cast<int64_t>(within / height) * tokens;
  place.split = blockIdx.y;
  place.first_stage = place.split * plan.stages_of_split;
  const int64_t rest = plan.stages - place.first_stage;
  place.stages = rest < plan.stages_of_split ? rest : plan.stages_of_split;
  return place;
}

template <typename T, typename Tile>
class NmLoader {
 public:
  __device__ __forceinline__ NmLoader(const NmWork& work, const NmPlace& place)
      : work_(work), row_(place.row), token_(place.token), stage_(place.first_stage) {
    const int64_t columns64 = nm_cuda_padded(work.columns), rows64 = nm_cuda_padded(work.rows);
    const int64_t k = place.first_stage * Tile::kColumns;
    to_a_ = ptx::kept(swizzled<Tile::kARow>(a_row(), a_chunk()));
    to_b_ = ptx::kept(Tile::kB + swizzled<Tile::kBRow>(b_row(), b_chunk()));
    const int64_t a_stride = columns64 / 2 * Tile::kBytes, b_stride = work.x_stride * Tile::kBytes;
    a_ = static_cast<const char*>(work.values) + (place.row + a_row()) * a_stride +
         k / 2 * Tile::kBytes + a_chunk() * 16;
    b_ = static_cast<const char*>(work.x) + (place.token + b_row()) * b_stride + k * Tile::kBytes +
         b_chunk() * 16;
    a_pass_ = a_stride * Tile::kAPass;
    b_pass_ = b_stride * Tile::kBPass;
    const int64_t last = rows64 / 64 - 1, wanted = place.row / 64 + threadIdx.x / kMetaRow;
    meta_ = reinterpret_cast<const char*>(work.meta) + threadIdx.x % kMetaRow * 16 +
            ((wanted < last ? wanted : last) * (columns64 / 64) + k / 64) * 512;
    const bool inside =
        place.row + Tile::kRows <= rows64 && place.token + Tile::kTokens <= work.tokens;
    whole_ = inside && aligned() ? work.columns / Tile::kColumns : 0;
  }

  // Starts the copies of the next stage, to this address in shared memory.
  __device__ __forceinline__ void next(uint32_t stage) {
    if (stage_ < whole_)
      copy_whole(stage);
    else
      copy_edge(stage);
    ++stage_;
    a_ += Tile::kARow;
    b_ += Tile::kBRow;
    meta_ += Tile::kMetaTiles * 512;
  }

 private:
  static constexpr int kMetaRow = Tile::kMetaTiles * 32;  // copies of metadata for 64 rows

  static __device__ __forceinline__ int a_row() { return threadIdx.x / (Tile::kARow / 16); }
  static __device__ __forceinline__ int a_chunk() { return threadIdx.x % (Tile::kARow / 16); }
  static __device__ __forceinline__ int b_row() { return threadIdx.x / (Tile::kBRow / 16); }
  static __device__ __forceinline__ int b_chunk() { return threadIdx.x % (Tile::kBRow / 16); }
  static __device__ __forceinline__ bool copies_meta() {
    return Tile::kMetaCopies == Tile::kThreads || threadIdx.x < Tile::kMetaCopies;
  }
  __device__ __forceinline__ bool aligned() const {
    return work_.x_stride % Tile::kPer16 == 0 && reinterpret_cast<uintptr_t>(work_.x) % 16 == 0;
  }

  __device__ __forceinline__ void copy_whole(uint32_t stage) const {
    const char* a = a_;
    unrolled<Tile::kACopies>([&](auto i) {
      ptx::cp_async16<i.value * Tile::kAPass * Tile::kARow>(stage + to_a_, a);
      a += a_pass_;
    });
    const char* b = b_;
    unrolled<Tile::kBCopies>([&](auto i) {
      ptx::cp_async16<i.value * Tile::kBPass * Tile::kBRow>(stage + to_b_, b);
      b += b_pass_;
    });
    if (copies_meta()) ptx::cp_async16<Tile::kMeta>(stage + threadIdx.x * 16, meta_);
  }

  __device__ __forceinline__ void copy_edge(uint32_t stage) const {
    const int64_t k = stage_ * Tile::kColumns, columns64 = nm_cuda_padded(work_.columns);
    const int64_t rows = nm_cuda_padded(work_.rows) - row_ - a_row();
    const int64_t tokens = work_.tokens - token_ - b_row();
    const bool a_inside = k + a_chunk() * 2 * Tile::kPer16 < columns64;
    const char* a = a_;
    unrolled<Tile::kACopies>([&](auto i) {
      const bool inside = a_inside && i.value * Tile::kAPass < rows;
      ptx::cp_async16<i.value * Tile::kAPass * Tile::kARow>(stage + to_a_, a, inside ? 16 : 0);
      a += a_pass_;
    });
    const int64_t columns = work_.columns - k - b_chunk() * Tile::kPer16;
    if (Tile::kBytes == 1 || aligned()) {
      const char* b = b_;
      unrolled<Tile::kBCopies>([&](auto i) {
        const bool inside = columns > 0 && i.value * Tile::kBPass < tokens;
        ptx::cp_async16<i.value * Tile::kBPass * Tile::kBRow>(stage + to_b_, b, inside ? 16 : 0);
        b += b_pass_;
      });
    } else {
      copy_elements(stage, columns, tokens);
    }
    const int64_t over = k / 64 + threadIdx.x % kMetaRow / 32 - (columns64 / 64 - 1);
    if (copies_meta())
      ptx::cp_async16<Tile::kMeta>(stage + threadIdx.x * 16, meta_ - (over > 0 ? over : 0) * 512);
  }

  // `columns` and `tokens`: how many are left from this thread's first on.
  __device__ __forceinline__ void copy_elements(uint32_t stage, int64_t columns,
                                                int64_t tokens) const {
#pragma unroll 1
    for (int i = 0; i < Tile::kBCopies; ++i) {
      const auto* b = reinterpret_cast<const uint16_t*>(b_ + i * b_pass_);
      uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
      for (int e = 0; e < 8; ++e)
        if (e < columns && i * Tile::kBPass < tokens)
          words[e / 2] |= static_cast<uint32_t>(b[e]) << (16 * (e % 2));
      ptx::store_shared16(stage + to_b_ + i * Tile::kBPass * Tile::kBRow, words);
    }
  }

  const NmWork& work_;
  const char *a_, *b_, *meta_;
  int64_t row_, token_, a_pass_, b_pass_, stage_, whole_;
  uint32_t to_a_, to_b_;
};

}  // namespace evoprune::cuda
