// nm_prepare_cuda: the canonical tensors of a 2:4 weight -> the layout "cuda".
//
//   values: rows and columns padded with 0 to multiples of 64
//   meta:   4 bits a group -> the words of core/nm_cuda_layout.h, in the order of 16-bit values, or
//           of int8 where a value is 1 byte; padding holds the indices 0 and 1
//
//   a block: 64 rows x 512 columns: 64 bytes of meta a row, 8 tiles
//
//   meta   row   | 64 bytes, 4 lanes of 16 |     -> shared memory (nm_meta.cuh) -> 512 bytes a tile,
//   values row   | 256 values, 16 bytes a lane | -> the same bytes                 16 a lane
//
// Rows that share their mask (2:4v16) read the same meta. Sizes or pointers that do not allow
// 16-byte loads take single bytes. Bound by memory: everything is read once and written once.
// Exact. A group whose indices do not increase is reported where `fault` is given.
// Source: "PTX ISA", 9.7.14.6.
#include "core/nm_cuda_layout.h"
#include "cuda/launch.cuh"
#include "cuda/nm_meta.cuh"
#include "cuda/nm_pack.h"
#include "cuda/ptx.cuh"

namespace evoprune::cuda {

constexpr int kPrepareThreads = 256, kPrepareColumns = 32 * MetaTile::kWords;

// 16 bytes from byte `at` of a row of `size` bytes; 0 beyond its end.
__device__ __forceinline__ uint4 load_row16(const uint8_t* row, int64_t at, int64_t size,
                                            bool aligned) {
  if (aligned) return at < size ? ptx::load_once(row + at) : uint4{};
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 16; ++i)
    if (at + i < size) words[i / 4] |= uint32_t{row[at + i]} << (i % 4 * 8);
  return make_uint4(words[0], words[1], words[2], words[3]);
}

struct NmPrepareCudaLaunch {
  NmPrepareCudaArgs args;
  bool aligned_values, aligned_meta;  // every row begins at, and is, a multiple of 16 bytes
};

// Eight groups of a row from group `group` on: those beyond the row hold nothing; the rest is checked.
__device__ __forceinline__ uint32_t checked(uint32_t word, const NmPrepareCudaArgs& args,
                                            int64_t meta_row, int64_t group) {
  const int64_t groups = (args.columns + 3) / 4, left = groups - group;
  if (left <= 0) return kEmptyGroups;
  const uint32_t there = left >= 8 ? ~uint32_t{0} : (uint32_t{1} << (4 * left)) - 1;
  word = (word & there) | (kEmptyGroups & ~there);
  // bit 2 of a nibble stays where second - first >= 1
  const uint32_t first = word & 0x33333333u, second = word >> 2 & 0x33333333u;
  const uint32_t falling = ~((second | 0x44444444u) - first - 0x11111111u) & 0x44444444u;
  if (falling != 0 && args.fault != nullptr) {
    const int at = (__ffs(static_cast<int>(falling)) - 1) / 4;
    atomicMin(args.fault, static_cast<Fault>(meta_row * groups + group + at));
  }
  return word;
}

__global__ void __launch_bounds__(kPrepareThreads) nm_prepare_cuda_kernel(NmPrepareCudaLaunch run) {
  __shared__ MetaTile tile;
  const NmPrepareCudaArgs& args = run.args;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int64_t columns64 = nm_cuda_padded(args.columns), tiles = columns64 / kNmCudaTile;
  const int64_t spans = (columns64 + kPrepareColumns - 1) / kPrepareColumns;
  const int64_t rows_from = blockIdx.x / spans * MetaTile::kRows;
  const int64_t from = blockIdx.x % spans * kPrepareColumns;
  const int64_t meta_bytes = ((args.columns + 3) / 4 + 1) / 2;

  const int chunk = thread % 4, r = thread / 4;  // 64 rows of 4 chunks
  const int64_t meta_row = (rows_from + r) / args.shared, meta_at = from / 8 + chunk * 16;
  uint4 meta = make_uint4(kEmptyGroups, kEmptyGroups, kEmptyGroups, kEmptyGroups);
  if (rows_from + r < args.rows) {
    meta = load_row16(args.meta + meta_row * meta_bytes, meta_at, meta_bytes, run.aligned_meta);
    uint32_t* words[] = {&meta.x, &meta.y, &meta.z, &meta.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) *words[i] = checked(*words[i], args, meta_row, 2 * meta_at + 8 * i);
  }
  tile.set(r, chunk * 16, meta.x);
  tile.set(r, chunk * 16 + 4, meta.y);
  tile.set(r, chunk * 16 + 8, meta.z);
  tile.set(r, chunk * 16 + 12, meta.w);

  const int64_t row_bytes = (args.columns + 3) / 4 * 2 * args.value_bytes;
  const int64_t out_bytes = columns64 / 2 * args.value_bytes;
  const int chunks = kPrepareColumns / 2 * args.value_bytes / 16;
  const uint8_t* values = static_cast<const uint8_t*>(args.values);
  uint8_t* out = static_cast<uint8_t*>(args.cuda_values);
  for (int i = thread; i < MetaTile::kRows * chunks; i += kPrepareThreads) {
    const int64_t row = rows_from + i / chunks;
    const int64_t at = from / 2 * args.value_bytes + i % chunks * 16;
    if (at >= out_bytes) continue;
    uint4 v{};
    if (row < args.rows)
      v = load_row16(values + row * row_bytes, at, row_bytes, run.aligned_values);
    ptx::store_global16(out + row * out_bytes + at, v);
  }
  __syncthreads();
  const int64_t across = from / kNmCudaTile + warp;
  if (across >= tiles) return;
  const int64_t at = rows_from / kNmCudaTile * tiles + across;
  tile.store(warp, lane, args.value_bytes == 1,
             args.cuda_meta + at * kNmCudaTile * kNmCudaTile / 32);
}

static_assert(kPrepareThreads / 32 == kPrepareColumns / kNmCudaTile, "a warp stores one tile");
static_assert(kPrepareThreads == MetaTile::kRows * MetaTile::kWords / 4, "a thread loads 16 bytes");

void nm_prepare_cuda(const NmPrepareCudaArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.columns == 0) return;
  const int64_t groups = nm_groups(args.columns, 4);
  const NmPrepareCudaLaunch run{args,
                                aligned16(args.values) && groups * 2 * args.value_bytes % 16 == 0,
                                aligned16(args.meta) && (groups + 1) / 2 % 16 == 0};
  const int64_t blocks =
      ceil_div(args.rows, MetaTile::kRows) * ceil_div(args.columns, kPrepareColumns);
  launch(nm_prepare_cuda_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kPrepareThreads), 0,
         stream, run);
}

}  // namespace evoprune::cuda
