// bitmask_linear for x of 16 bits: kept values are put in their places in mma fragments.
//
//   y[m, n] = act(scale[n] * sum over the kept k of w[n, k] x[m, k] + bias[n])
//
//   a block: 16 rows, up to 16 tokens, 1024 columns at a time; a warp takes 256 of these
//
//   bits     row r | 8 pieces of 128 columns: 16 bytes each | 8 x 16 bits: where a piece's values begin
//   values   row r | rest of a sector | the row's values of the 1024 columns | ..   as they are in memory
//   x        token m | 1024 columns | 16 bytes, so that eight tokens meet different banks
//            one token more is zeros, for the columns of a fragment that have no token
//
//   fragment a, 8 columns: one byte of bits   1 0 | 0 1 | 1 1 | 0 0
//   lane t of a row's four has two of them    a 0 | 0 b | c d | 0 0    t = 0 .. 3
//
// Eight threads bring a row: 128 bits each, whose population counts, added up, tell where in the row's
// values those of a piece begin; then the values, 16 bytes each at a time, and x likewise, all by
// cp.async. A lane finds its two values of a byte by the population count of the bits before them, and
// a fragment costs the same for any mask and for 1 to 16 tokens. The four warps' sums are added at the
// end, in the order of the warps.
//
// Every value and bit is read once by the block in whole sectors: the sector between the values of two
// chunks is moved inside of shared memory. x is read by every block. The lanes of a row read
// neighbours; those of the eight rows of a fragment may meet in a bank, as nothing aligns their
// counts. To give each row four banks of its own would end that, at 3 more instructions an address,
// which cost more. Counted, not measured, for 32 columns of a row, 30 % kept, f16: 12.6 warp instructions
// and 2.3 bank passes for one token, 14.2 and 3.0 for 16.
// Products are exact and sums are float; deterministic. Only kept entries take part, with NaN and
// infinity of both sides: a fragment has zeros where nothing is kept, and 0 * infinity is NaN, so a
// warp whose sums are not finite computes them again, entry by entry. x that is not finite cannot hide
// from that: it makes all sums of its token infinite or NaN.
// A row_ptr that contradicts bits cannot lead outside of a tensor: see bitmask_linear.cu.
#include "cuda/bitmask_linear.h"
#include "cuda/epilogue.cuh"
#include "cuda/few_tokens.cuh"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace evoprune::cuda {

namespace bitmask_mma {

constexpr int kRows = 16, kWarps = 4, kThreads = 32 * kWarps;
constexpr int kChunk = 1024;               // columns
constexpr int kOfRow = kThreads / kRows;   // threads that bring a row
constexpr int kPiece = kChunk / kOfRow;    // columns of a thread's bits
constexpr int kPieces = kOfRow / kWarps;   // of a warp
constexpr int kBitsRow = kChunk / 8 + 16;  // bytes, with the 16-bit places
constexpr int kSumsRow = kRows + 4;        // floats; lanes of a fragment meet different banks
constexpr uint32_t kAll = 0xffffffffu;
static_assert(kPiece == 128, "a thread's bits are 16 bytes");

template <typename S, int kTokens>
struct Shared {
  static constexpr int kX = (kChunk + 8) * 2;                                     // bytes of a row
  static constexpr int kValues = kChunk * static_cast<int>(sizeof(S)) + 64 + 16;  // of a row
  static constexpr int kBytes = kTokens * kX + kRows * (kValues + kBitsRow);
  static_assert(kWarps * kTokens * kSumsRow * 4 <= kBytes, "the sums take the place of the rest");
  static_assert(kValues <= 1 << 16, "a place is 16 bits");
  uint32_t x, values, bits;

  __device__ explicit Shared(const char* start)
      : x(ptx::shared_address(start)), values(x + kTokens * kX), bits(values + kRows * kValues) {}
};

// ---- from memory ----
// The 128 bits from `column` on of a row, those beyond the last column as 0.
__device__ __forceinline__ uint4 bits_of(const uint8_t* row, int64_t column, int64_t columns) {
  const int64_t left = columns - column;
  if (left <= 0) return {};
  const uint8_t* from = row + column / 8;
  if (left >= kPiece && reinterpret_cast<uintptr_t>(from) % 16 == 0) return ptx::load_once(from);
  uint32_t w[4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll 1
    for (int b = 0; b < 32; b += 8)
      if (32 * i + b < left) w[i] |= static_cast<uint32_t>(from[4 * i + b / 8]) << b;
    const int64_t valid = left - 32 * i;
    if (valid < 32) w[i] &= valid <= 0 ? 0 : (1u << valid) - 1;
  }
  return {w[0], w[1], w[2], w[3]};
}

// Clears the highest `count` bits that are set, or all.
__device__ __forceinline__ void clear_last(uint32_t (&w)[4], int count) {
#pragma unroll
  for (int i = 3; i >= 0; --i)
    for (; count > 0 && w[i] != 0; --count) w[i] &= ~(0x80000000u >> __clz(w[i]));
}

// What one of the eight threads of a row knows of its values.
template <typename S>
struct Source {
  static constexpr int kSize = sizeof(S);
  uintptr_t at, end;         // addresses of the row's values that are left
  uintptr_t sector, loaded;  // what shared memory begins with; up to where it has been read
  uintptr_t tensor_start, tensor_end;

  __device__ Source(const BitmaskLinearArgs& args, int64_t n) {
    int64_t from = 0, to = 0;
    if (n < args.rows) {
      from = args.row_ptr[n];
      to = args.row_ptr[n + 1];
      from = from < 0 ? 0 : from < args.count ? from : args.count;
      to = to < from ? from : to < args.count ? to : args.count;
    }
    tensor_start = reinterpret_cast<uintptr_t>(args.values);
    tensor_end = tensor_start + args.count * kSize;
    at = tensor_start + from * kSize;
    end = tensor_start + to * kSize;
    sector = loaded = at / 32 * 32;
  }

  // The row's `bits` of a chunk, their places and values to shared memory.
  __device__ __forceinline__ void bring(uint4 bits, uint32_t to_bits, uint32_t to_values) {
    const int piece = threadIdx.x % kOfRow;
    uint32_t w[4] = {bits.x, bits.y, bits.z, bits.w};
    const int own = __popc(w[0]) + __popc(w[1]) + __popc(w[2]) + __popc(w[3]);
    int upto = own;
#pragma unroll
    for (int d = 1; d < kOfRow; d *= 2) {
      const int before = __shfl_up_sync(kAll, upto, d, kOfRow);
      if (piece >= d) upto += before;
    }
    int total = __shfl_sync(kAll, upto, kOfRow - 1, kOfRow);
    const int64_t left = static_cast<int64_t>(end - at) / kSize;
    if (total > left) {  // more bits than values: the first ones count
      total = static_cast<int>(left);
      clear_last(w, upto - total);
    }
    const int start = static_cast<int>(at % 32);
    ptx::store_shared16(to_bits + 16 * piece, w);
    ptx::st_shared_u16(to_bits + kChunk / 8 + 2 * piece, start + (upto - own) * kSize);
    copy(to_values, start + total * kSize);
    at += total * kSize;
  }

  // The sectors of bytes [0, bytes) from that of `at` on.
  __device__ __forceinline__ void copy(uint32_t to, int bytes) {
    const int piece = threadIdx.x % kOfRow;
    const uintptr_t first = at / 32 * 32;
    const bool known = loaded > first;  // of the sector of `at`
    uint32_t moved[4] = {};
    if (known && piece < 2)
      ptx::load_shared16(moved, to + static_cast<uint32_t>(first - sector) + 16 * piece);
    __syncwarp();
    if (known && piece < 2) ptx::store_shared16(to + 16 * piece, moved);
    sector = first;
    const bool some = bytes > static_cast<int>(at - first);
    const int whole = some ? (bytes + 31) / 32 * 32 : 0;
#pragma unroll 1
    for (int i = 16 * piece + (known ? 32 : 0); i < whole; i += 16 * kOfRow) {
      const uintptr_t from = first + i;
      if (from >= tensor_start && from + 16 <= tensor_end)
        ptx::cp_async16(to + i, reinterpret_cast<const void*>(from));
      else
        copy_each(to + i, from);
    }
    if (some) loaded = first + whole;
  }
  // 16 bytes that are not all in the tensor; the others are 0.
  __device__ __forceinline__ void copy_each(uint32_t to, uintptr_t from) {
#pragma unroll 1
    for (int i = 0; i < 16; i += kSize) {
      const bool inside = from + i >= tensor_start && from + i < tensor_end;
      if constexpr (kSize == 2)
        ptx::st_shared_u16(to + i, inside ? *reinterpret_cast<const uint16_t*>(from + i) : 0);
      else
        ptx::st_shared_u8(to + i, inside ? *reinterpret_cast<const uint8_t*>(from + i) : 0);
    }
  }
};

// `rows` tokens of x from the block's first on, columns [first, first + count); what lies beyond the
// last token or column is 0.
template <int kRowBytes>
__device__ __forceinline__ void stage(uint32_t to, const BitmaskLinearArgs& args, int64_t token,
                                      int tokens, int rows, int64_t first, int count) {
  const int column = 8 * static_cast<int>(threadIdx.x);
  if (column >= count) return;
  const uint16_t* x = static_cast<const uint16_t*>(args.x) + token * args.columns + first + column;
  const int64_t left = args.columns - first - column;
  const bool wide = args.columns % 8 == 0 && reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
  to += 2 * column;
  int m = 0;
  if (wide && left > 0) {
#pragma unroll 2
    for (; m < tokens; ++m, x += args.columns) ptx::cp_async16(to + m * kRowBytes, x);
  }
#pragma unroll 1
  for (; m < rows; ++m, x += args.columns) {
    uint32_t w[4] = {};
    if (m < tokens) {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (i < left) w[i / 2] |= static_cast<uint32_t>(x[i]) << (i % 2 * 16);
    }
    ptx::store_shared16(to + m * kRowBytes, w);
  }
}

// ---- fragments ----
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

// Columns 8 kByte + 2 t and the next one of a word, whose values begin at `at`. `own`: the word
// shifted so that the lane's two bits come first; `before`: the columns before them.
template <int kByte, typename T, typename S>
__device__ __forceinline__ uint32_t pair(uint32_t word, uint32_t own, uint32_t before,
                                         uint32_t at) {
  constexpr uint32_t kSize = sizeof(S);
  const uint32_t from = at + __popc(word & before) * kSize;
  const uint32_t low = own & 1u << 8 * kByte, high = own & 2u << 8 * kByte;
  const uint32_t a = ptx::ld_shared_if<kSize>(from, low);
  const uint32_t b = ptx::ld_shared_if<kSize>(low != 0 ? from + kSize : from, high);
  return two(a, b, T{}, S{});
}

// What a lane reads: rows g and g + 8 of the weight, x of token g of each tile.
template <int kTiles>
struct Lane {
  uint32_t bits, values;  // of row g
  uint32_t x[kTiles];
  uint32_t before[4];  // columns before its two of each byte
  int shift;

  template <typename Memory>
  __device__ Lane(const Memory& shared, int tokens) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
    bits = shared.bits + g * kBitsRow;
    values = shared.values + g * Memory::kValues;
    shift = 2 * t;
#pragma unroll
    for (int b = 0; b < 4; ++b) before[b] = (1u << (8 * b + 2 * t)) - 1;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int token = 8 * i + g < tokens ? 8 * i + g : tokens;
      x[i] = shared.x + token * Memory::kX + 2 * (warp * kPieces * kPiece + 2 * t);
    }
  }
};

// sums += the warp's columns, `count` of them.
template <typename T, typename S, int kTiles>
__device__ __forceinline__ void multiply(float (&sums)[kTiles][4], const Lane<kTiles>& lane,
                                         int count) {
  constexpr uint32_t kValues = Shared<S, 8>::kValues;
  const uint32_t warp = threadIdx.x / 32;
#pragma unroll 1
  for (int piece = 0; piece < kPieces && piece * kPiece < count; ++piece) {
    uint32_t w[2][4], at[2];
    const uint32_t index = warp * kPieces + piece;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t row = lane.bits + 8 * h * kBitsRow;
      ptx::load_shared16(w[h], row + 16 * index);
      at[h] = lane.values + 8 * h * kValues + ptx::ld_shared_if<2>(row + kChunk / 8 + 2 * index, 1);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t a[2][4];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t word = w[h][j], own = word >> lane.shift;
        a[0][h] = pair<0, T, S>(word, own, lane.before[0], at[h]);
        a[0][2 + h] = pair<1, T, S>(word, own, lane.before[1], at[h]);
        a[1][h] = pair<2, T, S>(word, own, lane.before[2], at[h]);
        a[1][2 + h] = pair<3, T, S>(word, own, lane.before[3], at[h]);
        at[h] += __popc(word) * static_cast<uint32_t>(sizeof(S));
      }
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const uint32_t x = lane.x[i] + 2 * (piece * kPiece + 32 * j);
#pragma unroll
        for (int step = 0; step < 2; ++step)
          ptx::mma_m16n8k16(sums[i], a[step], ptx::ld_shared(x + 32 * step),
                            ptx::ld_shared(x + 32 * step + 16), T{});
      }
    }
  }
}

// The same, entry by entry.
template <typename T, typename S, int kTokens>
__device__ void multiply_each(float (&sums)[kTokens / 8][4], const char* memory, int tokens,
                              int count) {
  using Memory = Shared<S, kTokens>;
  const char* values = memory + kTokens * Memory::kX;
  const char* bits = values + kRows * Memory::kValues;
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
#pragma unroll 1
  for (int e = 0; e < kTokens / 2; ++e) {
    const int row = g + e % 4 / 2 * 8, token = e / 4 * 8 + 2 * t + e % 2;
    const int staged = token < tokens ? token : tokens;
    const T* x = reinterpret_cast<const T*>(memory + staged * Memory::kX) + warp * kPieces * kPiece;
    float sum = 0.0f;
    for (int word = 0; word < kPieces * 4 && 32 * word < count; ++word) {
      const int index = warp * kPieces + word / 4;
      const char* of_row = bits + row * kBitsRow;
      const uint32_t* words = reinterpret_cast<const uint32_t*>(of_row) + index * 4;
      int at = reinterpret_cast<const uint16_t*>(of_row + kChunk / 8)[index];
      for (int i = 0; i < word % 4; ++i) at += __popc(words[i]) * static_cast<int>(sizeof(S));
      for (uint32_t left = words[word % 4]; left != 0; left &= left - 1, at += sizeof(S)) {
        const S value = *reinterpret_cast<const S*>(values + row * Memory::kValues + at);
        sum = fmaf(to_float(value), to_float(x[32 * word + __ffs(left) - 1]), sum);
      }
    }
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i)
      if (i == e) sums[i / 4][i % 4] += sum;
  }
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
#pragma unroll 1
  for (int m = threadIdx.x / kRows; m < tokens; m += kThreads / kRows) {
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
  extern __shared__ __align__(128) char shared[];
  const Memory memory(shared);
  const int64_t token = static_cast<int64_t>(blockIdx.x % token_blocks) * kTokens;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / token_blocks) * kRows;
  const int tokens =
      static_cast<int>(args.tokens - token < kTokens ? args.tokens - token : kTokens);
  const int rows_of_x = tokens < kTokens ? tokens + 1 : kTokens;
  const int brought = threadIdx.x / kOfRow;  // the row that this thread brings
  const int64_t n = first_row + brought, columns = n < args.rows ? args.columns : 0;
  const uint8_t* row_bits = args.bits + n * ((args.columns + 7) / 8);
  const int own_column = threadIdx.x % kOfRow * kPiece;
  const int before_warp = threadIdx.x / 32 * kPieces * kPiece;

  Source<S> source(args, n);
  const Lane<kTokens / 8> lane(memory, tokens);
  float sums[kTokens / 8][4] = {};
  uint4 bits = bits_of(row_bits, own_column, columns);
  for (int64_t first = 0; first < args.columns; first += kChunk) {
    const int64_t left = args.columns - first;
    const int count = left < kChunk ? static_cast<int>(left) : kChunk;
    if (first > 0) __syncthreads();
    stage<Memory::kX>(memory.x, args, token, tokens, rows_of_x, first,
                      (count + kPiece - 1) / kPiece * kPiece);
    source.bring(bits, memory.bits + brought * kBitsRow, memory.values + brought * Memory::kValues);
    ptx::cp_async_commit();
    bits = bits_of(row_bits, first + kChunk + own_column, columns);
    ptx::cp_async_wait<0>();
    __syncthreads();
    float added[kTokens / 8][4] = {};
    multiply<T, S>(added, lane, count - before_warp);
    bool finite = true;
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) finite &= fabsf(added[i / 4][i % 4]) < INFINITY;
    if (!__all_sync(kAll, finite)) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) added[i / 4][i % 4] = 0.0f;
      multiply_each<T, S, kTokens>(added, shared, tokens, count - before_warp);
    }
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sums[i / 4][i % 4] += added[i / 4][i % 4];
  }
  finish<T, kTokens>(sums, reinterpret_cast<float*>(shared), args, first_row, token, tokens);
}

namespace bitmask_mma {

template <typename T, typename S, int kTokens>
void run(const BitmaskLinearArgs& args, cudaStream_t stream) {
  const int64_t token_blocks = ceil_div(args.tokens, kTokens);
  const int64_t blocks = ceil_div(args.rows, kRows) * token_blocks;
  launch(bitmask_linear_mma_kernel<T, S, kTokens>, dim3(static_cast<unsigned>(blocks)), kThreads,
         Shared<S, kTokens>::kBytes, stream, args, static_cast<int>(token_blocks));
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
