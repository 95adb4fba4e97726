// bitmask_linear for 2 to 16 tokens of 16 bits: rows are unpacked and multiplied by the tensor cores.
//
//   y[m, n] = act(scale[n] * sum over the kept k of w[n, k] x[m, k] + bias[n])
//
//   a block: 16 rows, up to 16 tokens, 512 columns at a time; four warps, a piece of 128 columns each
//
//   words, values   bitmask_rows.cuh
//   x               token m | the columns | 16 bytes, so that eight tokens meet different banks
//                   one token more is zeros, for the columns of a fragment that have no token
//   tile            of each warp: row r | 128 numbers | 16 bytes        16 rows
//
//   piece of a row, four columns a lane     1 0 0 1 | 1 1 0 0 | ..
//   its place in the tile                   a 0 0 b | c d 0 0 | ..      eight bytes a lane
//
// A lane finds its values by the population count of the bits before its own and writes them, and zeros
// where nothing is kept, to the tile; eight steps of mma m16n8k16 read it and x by ldmatrix. What 32 columns
// cost does not depend on the mask, and hardly on the tokens. The four warps' sums are added at the end,
// in the order of the warps.
//
// Values and bits are read once by the block, in whole sectors; x is read by every block.
// Counted, not measured, for 32 columns of a row, 30 % kept, of f16: 12.0 warp instructions and 3.4 bank
// passes for 8 tokens, 13.0 and 3.9 for 16; no bank conflicts.
// Products are exact and sums are float; deterministic. Only kept entries take part, with NaN and
// infinity of both sides: the tile has zeros where nothing is kept, and 0 * infinity is NaN, so a
// warp whose sums are not finite computes them again, entry by entry. x that is not finite cannot hide
// from that: it makes all sums of its token infinite or NaN.
// Source: the layout is ours; unpacking to dense fragments as in Xia et al., "Flash-LLM", VLDB 2023.
#include "cuda/bitmask_linear.h"
#include "cuda/bitmask_rows.cuh"
#include "cuda/epilogue.cuh"
#include "cuda/few_tokens.cuh"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/tile.cuh"
#include "cuda/token_rows.cuh"

namespace evoprune::cuda {

namespace bitmask_mma {

using bitmask::kAll;

constexpr int kRows = 16, kWarps = 4, kThreads = 32 * kWarps;
constexpr int kSumsRow = kRows + 4;  // floats; lanes of a fragment meet different banks

template <typename S>
using MmaChunk = bitmask::Chunk<S, kRows, 512>;

template <typename S, int kTokens>
struct Shared : MmaChunk<S> {
  using C = MmaChunk<S>;
  static constexpr int kXRow = C::kColumns * 2 + 16;  // bytes
  static constexpr int kTileRow = C::kPiece * 2 + 16, kTile = kRows * kTileRow;
  static constexpr int kSharedBytes = kTokens * kXRow + C::kBytes + kWarps * kTile;
  static_assert(C::kColumns == kWarps * C::kPiece, "a warp has one piece");
  static_assert(kWarps * kTokens * kSumsRow * 4 <= kSharedBytes,
                "the sums take the place of the rest");
  uint32_t x, words, values, tile;  // tile: the warp's

  __device__ __forceinline__ explicit Shared(const char* start)
      : x(ptx::shared_address(start)),
        words(x + kTokens * kXRow),
        values(words + kRows * C::kWordsRow),
        tile(values + kRows * C::kValuesRow + threadIdx.x / 32 * kTile) {}
};

// ---- unpacked ----
// Two stored numbers, zero-extended, as two of T; 0 is +0.
__device__ __forceinline__ uint32_t two(uint32_t a, uint32_t b, __half /*x*/, __half /*stored*/) {
  return __byte_perm(a, b, 0x5410);
}
__device__ __forceinline__ uint32_t two(uint32_t a, uint32_t b, __nv_bfloat16 /*x*/,
                                        __nv_bfloat16 /*stored*/) {
  return __byte_perm(a, b, 0x5410);
}
// 0x6400 + u is 1024 + u as a half.
__device__ __forceinline__ uint32_t two(uint32_t a, uint32_t b, __half /*x*/, int8_t /*stored*/) {
  const uint32_t biased = __byte_perm(a, b, 0x5410) ^ 0x64806480u;
  const __half2 number =
      __hsub2(reinterpret_cast<const __half2&>(biased), __half2half2(__ushort_as_half(0x6480)));
  return reinterpret_cast<const uint32_t&>(number);
}
// 0x4b000000 + u is 2^23 + u as a float.
__device__ __forceinline__ uint32_t two(uint32_t a, uint32_t b, __nv_bfloat16 /*x*/,
                                        int8_t /*stored*/) {
  const auto number = [](uint32_t u) { return __uint_as_float(u ^ 0x4b000080u) - 8388736.0f; };
  const __nv_bfloat162 both = __floats2bfloat162_rn(number(a), number(b));
  return reinterpret_cast<const uint32_t&>(both);
}

// The warp's tile <- a piece of all rows.
template <typename T, typename S, typename Memory>
__device__ __forceinline__ void unpack(const Memory& shared,
                                       const bitmask::KeptReader<typename Memory::C>& reader,
                                       int piece) {
  const uint32_t to = shared.tile + threadIdx.x % 32 * 8;
  const uint32_t place = reader.place(0, piece);
  unrolled<kRows>([&](auto row) {
    bitmask::Kept kept = reader.template read<row.value>(place);
    uint32_t number[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      number[i] = ptx::take_shared_if<sizeof(S)>(kept.at, kept.bits & 1u << i);
    ptx::st_shared8<row.value * Memory::kTileRow>(to, two(number[0], number[1], T{}, S{}),
                                                  two(number[2], number[3], T{}, S{}));
  });
}

// sums += the tile times a piece of x.
template <typename T, typename Memory, int kTiles>
__device__ __forceinline__ void multiply(float (&sums)[kTiles][4], const Memory& shared, int tokens,
                                         int piece) {
  const int lane = threadIdx.x % 32;
  const uint32_t from = shared.tile + lane % 16 * Memory::kTileRow + lane / 16 * 16;
  uint32_t x[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    const int token = 8 * i + lane % 8 < tokens ? 8 * i + lane % 8 : tokens;
    x[i] = shared.x + token * Memory::kXRow + lane / 8 * 16 + piece * (Memory::kPiece * 2);
  }
  unrolled<Memory::kPiece / 32>([&](auto step) {
    uint32_t a[2][4];
    ptx::ldmatrix_x4<64 * step.value>(a[0], from);
    ptx::ldmatrix_x4<64 * step.value + 32>(a[1], from);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      uint32_t b[4];
      ptx::ldmatrix_x4<64 * step.value>(b, x[i]);
      ptx::mma_m16n8k16(sums[i], a[0], b[0], b[1], T{});
      ptx::mma_m16n8k16(sums[i], a[1], b[2], b[3], T{});
    }
  });
}

// The same as unpack and multiply, entry by entry.
template <typename T, typename S, int kTokens>
__device__ void multiply_each(float (&sums)[kTokens / 8][4], const char* memory, int tokens,
                              int piece) {
  using Memory = Shared<S, kTokens>;
  const Memory shared(memory);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll 1
  for (int e = 0; e < kTokens / 2; ++e) {
    const int row = g + e % 4 / 2 * 8, token = e / 4 * 8 + 2 * t + e % 2;
    const int staged = token < tokens ? token : tokens;
    const T* x =
        reinterpret_cast<const T*>(memory + staged * Memory::kXRow) + piece * Memory::kPiece;
    float sum = 0.0f;
    for (int word = 0; word < Memory::kPiece / 32; ++word) {
      uint2 kept = ptx::ld_shared8(shared.words + row * Memory::kWordsRow +
                                   (piece * (Memory::kPiece / 32) + word) * 8);
      for (; kept.x != 0; kept.x &= kept.x - 1, kept.y += sizeof(S)) {
        const S value = *reinterpret_cast<const S*>(memory + (kept.y - shared.x));
        sum = fmaf(to_float(value), to_float(x[32 * word + __ffs(kept.x) - 1]), sum);
      }
    }
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i)
      if (i == e) sums[i / 4][i % 4] += sum;
  }
}

// sums += one piece of the warp.
template <typename T, typename S, int kTokens>
__device__ __forceinline__ void add_piece(
    float (&sums)[kTokens / 8][4], const Shared<S, kTokens>& memory, const char* start,
    const bitmask::KeptReader<typename Shared<S, kTokens>::C>& reader, int tokens, int piece) {
  float added[kTokens / 8][4] = {};
  unpack<T, S>(memory, reader, piece);
  __syncwarp();
  multiply<T>(added, memory, tokens, piece);
  float zero = 0.0f;  // NaN if a sum is infinite or NaN
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) zero = fmaf(added[i / 4][i % 4], 0.0f, zero);
  if (!__all_sync(kAll, zero == 0.0f)) {
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) added[i / 4][i % 4] = 0.0f;
    multiply_each<T, S, kTokens>(added, start, tokens, piece);
  }
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) sums[i / 4][i % 4] += added[i / 4][i % 4];
}

// ---- to memory ----
// y <- the sums of the four warps.
template <typename T, int kTokens>
__device__ __forceinline__ void finish(const float (&sums)[kTokens / 8][4], float* shared,
                                       const BitmaskLinearArgs& args, int64_t first_row,
                                       int64_t token, int tokens) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kTokens / 8; ++i) {
    float* to = shared + (warp * kTokens + 8 * i + 2 * t) * kSumsRow + g;
    to[0] = sums[i][0];
    to[kSumsRow] = sums[i][1];
    to[8] = sums[i][2];
    to[kSumsRow + 8] = sums[i][3];
  }
  __syncthreads();
  const int row = threadIdx.x % kRows;
  const int64_t n = first_row + row;
  if (n >= args.rows) return;
  const Epilogue& e = args.epilogue;
  const float scale = scale_at(e, n), bias = bias_at(e, n);
  // a warp reads two tokens at once, 4 apart: 16 banks
  const int first = warp + threadIdx.x % 32 / kRows * kWarps;
#pragma unroll 1
  for (int m = first; m < tokens; m += kThreads / kRows) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += shared[(w * kTokens + m) * kSumsRow + row];
    const float z = activate(fmaf(sum, scale, bias), e.activation);
    static_cast<T*>(args.y)[(token + m) * args.rows + n] = from_float<T>(z);
  }
}

}  // namespace bitmask_mma

template <typename T, typename S, int kTokens>
__global__ void __launch_bounds__(bitmask_mma::kThreads, 4)
    bitmask_linear_mma_kernel(BitmaskLinearArgs args, int token_blocks) {
  using namespace bitmask_mma;
  using Memory = Shared<S, kTokens>;
  using X = TokenRows<T, Memory::kColumns, Memory::kXRow, kThreads>;
  extern __shared__ __align__(128) char shared[];
  const Memory memory(shared);
  const int64_t token = static_cast<int64_t>(blockIdx.x % token_blocks) * kTokens;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / token_blocks) * kRows;
  const int tokens =
      static_cast<int>(args.tokens - token < kTokens ? args.tokens - token : kTokens);
  const int rows_of_x = tokens < kTokens ? tokens + 1 : kTokens;
  bitmask::RowSource<Memory> source(args, first_row + threadIdx.x / bitmask::kOfRow, memory.words,
                                    memory.values);
  const bitmask::KeptReader<typename Memory::C> reader(memory.words);
  const T* x = static_cast<const T*>(args.x) + token * args.columns;
  const int warp = threadIdx.x / 32;
  float sums[kTokens / 8][4] = {};
  for (int64_t first = 0; first < args.columns; first += Memory::kColumns) {
    const int64_t left = args.columns - first;
    const int count = left < Memory::kColumns ? static_cast<int>(left) : Memory::kColumns;
    const int pieces = (count + Memory::kPiece - 1) / Memory::kPiece;
    if (first > 0) __syncthreads();
    source.bring();
    X::stage(memory.x, x, args.columns, tokens, rows_of_x, first, pieces * Memory::kPiece);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    if (warp < pieces) add_piece<T, S, kTokens>(sums, memory, shared, reader, tokens, warp);
  }
  finish<T, kTokens>(sums, reinterpret_cast<float*>(shared), args, first_row, token, tokens);
}

namespace bitmask_mma {

template <typename T, typename S, int kTokens>
void run(const BitmaskLinearArgs& args, cudaStream_t stream) {
  const int64_t token_blocks = ceil_div(args.tokens, kTokens);
  const int64_t blocks = ceil_div(args.rows, kRows) * token_blocks;
  launch(bitmask_linear_mma_kernel<T, S, kTokens>, dim3(static_cast<unsigned>(blocks)), kThreads,
         Shared<S, kTokens>::kSharedBytes, stream, args, static_cast<int>(token_blocks));
}

}  // namespace bitmask_mma

void bitmask_linear_mma(const BitmaskLinearArgs& args, cudaStream_t stream) {
  few::with_types(args.dtype, args.stored, [&](auto x, auto value) {
    using T = decltype(x);
    using S = decltype(value);
    if constexpr (sizeof(T) == 2) {
      if (args.tokens <= 8) return bitmask_mma::run<T, S, 8>(args, stream);
      bitmask_mma::run<T, S, 16>(args, stream);
    }
  });
}

}  // namespace evoprune::cuda
