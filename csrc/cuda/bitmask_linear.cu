// bitmask_linear: a linear layer whose weight has any mask, for few tokens of float, and for one of 16
// bits where the mask is very sparse. What else has 16 bits is for bitmask_linear_mma.cu.
//
//   y[m, n] = act(scale[n] * sum over the kept k of w[n, k] x[m, k] + bias[n])
//
//   bits     row n  | word 0: columns 0 .. 31 | word 1: .. | ..      lane l of a warp: word 32 i + l
//   values   ..row n-1 | row n, in the order of its bits | row n+1 ..
//            | batch 0     | batch 1     | ..    32 lanes x 16 bytes, from a multiple of 32 bytes on
//            lane 0, 1, ..
//   list     | - | slots of batch 0 | ..         shared memory, one a warp: for every value of the
//                                                row its place in x
//
// A warp has one row at a time and does two things in turn. It unpacks 1024 bits: a scan over the
// population counts tells each lane where its columns go in the list, in the order of the values.
// And as long as the list covers a batch of values, it multiplies: a lane takes 16 bytes of values,
// which are neighbours in memory, with their 16-bit places and gathers x.
// x lies in shared memory as in few_tokens.cuh, as many columns at a time as fit; a block stages it
// once for all of its rows where it fits whole. Sums of the lanes are added by shuffles.
//
// Every value and every bit is read once from memory, in whole sectors (one sector between two rows
// is read by both); two batches of values are on their way. Bound by shared memory next to it:
// writing the list and gathering x meet bank conflicts, as the columns are anything: 2.1 to 2.3 times
// the passes without, counted for 30 % kept. Tokens beyond a block's are for blocks of their own, next
// to each other in the grid.
// Sums in float; deterministic. Only kept entries take part, with NaN and infinity of both sides.
// A row_ptr that contradicts bits cannot lead outside of a tensor: rows are clamped to the values
// that there are, spare bits are ignored and a row ends where its bits or its values end. Whether
// both agree is BitmaskWeight.validate's to say; the device is not asked in every call.
#include "cuda/bitmask_linear.h"
#include "cuda/epilogue.cuh"
#include "cuda/few_tokens.cuh"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace evoprune::cuda {

namespace bitmask {

constexpr int kMaxWarps = 16;
constexpr int kStep = 1024;             // columns that a warp unpacks at once
constexpr int kChunkBytes = 64 * 1024;  // of x; a place in it is 16 bits
constexpr uint32_t kAll = 0xffffffffu;

struct Plan {
  int warps, chunks;  // rows of a block at a time; blocks along the tokens
  int x_bytes;        // of shared memory for x; the lists follow
};

template <typename T, typename S, int kTokensOfBlock>
struct Config : few::Tokens<T, kTokensOfBlock, kChunkBytes> {
  static constexpr int kValues = 16 / static_cast<int>(sizeof(S));  // of a lane
  static constexpr int kBatch = 32 * kValues;
  static constexpr int kList = kBatch + kStep;  // places
};

// ---- bits ----
// The lane's 32 bits of columns `first` + 32 lane .. of a row, those from `end` on as 0.
__device__ __forceinline__ uint32_t bits_of(const uint8_t* row, int first, int end) {
  const int column = first + 32 * (threadIdx.x % 32), left = end - column;
  if (left <= 0) return 0;
  const uint8_t* from = row + column / 8;
  uint32_t word = 0;
  if (left > 24 && reinterpret_cast<uintptr_t>(from) % 4 == 0) {
    word = *reinterpret_cast<const uint32_t*>(from);
  } else {
#pragma unroll
    for (int b = 0; b < 4; ++b)
      if (8 * b < left) word |= static_cast<uint32_t>(from[b]) << (8 * b);
  }
  return left < 32 ? word & ((1u << left) - 1) : word;
}

// Appends the places of the bits, lane after lane; returns how many there are.
template <int kSlot>
__device__ __forceinline__ int unpack(uint32_t word, int column, uint16_t* list) {
  const int lane = threadIdx.x % 32, own = __popc(word);
  int upto = own;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int before = __shfl_up_sync(kAll, upto, d);
    if (lane >= d) upto += before;
  }
  uint16_t* to = list + (upto - own);
  for (; word != 0; word &= word - 1)
    *to++ = static_cast<uint16_t>((column + 32 * lane + __ffs(word) - 1) * kSlot);
  return __shfl_sync(kAll, upto, 31);
}

// ---- values ----
template <int kSize>
struct Word;
template <>
struct Word<1> {
  using type = uint8_t;
};
template <>
struct Word<2> {
  using type = uint16_t;
};
template <>
struct Word<4> {
  using type = uint32_t;
};

// The values of a row, in slots from the current batch on.
template <typename S>
struct Row {
  static constexpr int kValues = 16 / static_cast<int>(sizeof(S)), kBatch = 32 * kValues;
  using W = typename Word<sizeof(S)>::type;
  const W* batch;                // slot 0; may lie before the tensor
  int start, end;                // of the row
  int tensor_start, tensor_end;  // of all values; an end far away is cut

  __device__ Row(const BitmaskLinearArgs& args, int64_t n) {
    const W* values = static_cast<const W*>(args.values);
    int64_t from = 0, to = 0;
    if (n < args.rows) {
      const int64_t count = args.count;
      from = args.row_ptr[n];
      to = args.row_ptr[n + 1];
      from = from < 0 ? 0 : from < count ? from : count;
      to = to < from ? from : to < count ? to : count;
    }
    start = static_cast<int>(reinterpret_cast<uintptr_t>(values + from) % 32 / sizeof(S));
    end = start + static_cast<int>(to - from);
    batch = values + from - start;
    tensor_start = start - static_cast<int>(from < start ? from : start);
    tensor_end = end + static_cast<int>(args.count - to < 32 ? args.count - to : 32);
  }
  __device__ __forceinline__ void advance() {
    batch += kBatch;
    start -= kBatch;
    end -= kBatch;
    tensor_start -= kBatch;
    tensor_end -= kBatch;
  }
  // The lane's 16 bytes of the batch `ahead` of the current one; what is not the row's and would
  // cost a sector is 0.
  __device__ __forceinline__ uint4 piece(int ahead) const {
    const int first = ahead * kBatch + static_cast<int>(threadIdx.x) % 32 * kValues;
    uint32_t w[4] = {};
    if (first + kValues > start && first < end) {
      if (first >= tensor_start && first + kValues <= tensor_end)
        return ptx::load_once(batch + first);
      constexpr int kOfWord = 4 / static_cast<int>(sizeof(S));
#pragma unroll
      for (int q = 0; q < 4; ++q) {
#pragma unroll 1
        for (int i = 0; i < kOfWord; ++i) {
          const int slot = first + q * kOfWord + i;
          if (slot >= start && slot < end)
            w[q] |= static_cast<uint32_t>(batch[slot]) << (32 / kOfWord * i);
        }
      }
    }
    return {w[0], w[1], w[2], w[3]};
  }
};

// acc += the lane's values at slots [low, high) of a batch; kWhole: of all of it.
template <bool kWhole, typename T, typename S, typename C>
__device__ __forceinline__ void multiply(float (&acc)[C::kTokens], uint4 piece,
                                         const uint16_t* list, const char* shared, int low,
                                         int high) {
  constexpr int kValues = C::kValues;
  const uint32_t w[4] = {piece.x, piece.y, piece.z, piece.w};
  const int first = threadIdx.x % 32 * kValues;
  using Places = Vector < uint16_t, kValues<8 ? kValues : 8>;
  Places places[kValues < 8 ? 1 : kValues / 8];
  if constexpr (kWhole) {
#pragma unroll
    for (int i = 0; i < kValues; i += 8)
      places[i / 8] = *reinterpret_cast<const Places*>(list + first + i);
  }
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    if (!kWhole && (first + i < low || first + i >= high)) continue;
    const int place = kWhole ? places[i / 8].at[i % 8] : list[first + i];
    const float value = few::stored(w, i, S{});
#pragma unroll
    for (int plane = 0; plane < C::kPlanes; ++plane) {
      const char* slot = shared + place + plane * C::kPlane;
      const auto x = *reinterpret_cast<const Vector<T, C::kVector>*>(slot);
#pragma unroll
      for (int v = 0; v < C::kVector; ++v) {
        float& sum = acc[plane * C::kVector + v];
        sum = fmaf(value, to_float(x.at[v]), sum);
      }
    }
  }
}

// What a warp has done of its row. The list begins with the current batch; its slots [low, high) are
// unpacked and not yet multiplied.
template <typename T, typename S, typename C>
struct Stream {
  Row<S> row;
  uint16_t* list;
  uint4 now, next;
  int low, high;

  __device__ Stream(const BitmaskLinearArgs& args, int64_t n, uint16_t* list)
      : row(args, n), list(list), low(row.start), high(row.start) {
    now = row.piece(0);
    next = row.piece(1);
  }
  // `count` columns of x begin at `shared`; `bits` are those of the first of them.
  __device__ __forceinline__ void run(float (&acc)[C::kTokens], const uint8_t* bits,
                                      const char* shared, int count) {
    uint32_t word = bits_of(bits, 0, count);
    for (int column = 0; column < count; column += kStep) {
      const uint32_t following = bits_of(bits, column + kStep, count);
      const int more = unpack<C::kSlot>(word, column, list + high);
      word = following;
      high = high + more < row.end ? high + more : row.end;
      __syncwarp();
      multiply_batches(acc, shared, column + kStep >= count);
      __syncwarp();
    }
  }
  // Whole batches; the rest of the list, less than a batch, moves to the front, or is multiplied as
  // well if it is the last.
  __device__ __forceinline__ void multiply_batches(float (&acc)[C::kTokens], const char* shared,
                                                   bool last) {
    const uint16_t* batch = list;
    while (high >= C::kBatch || last) {
      const int upto = high < C::kBatch ? high : C::kBatch;
      const uint4 piece = now;
      if (high >= C::kBatch) {
        now = next;
        row.advance();
        next = row.piece(1);
      }
      if (low == 0 && upto == C::kBatch)
        multiply<true, T, S, C>(acc, piece, batch, shared, low, upto);
      else
        multiply<false, T, S, C>(acc, piece, batch, shared, low, upto);
      low = high < C::kBatch ? high : 0;
      if (high < C::kBatch) return;
      high -= C::kBatch;
      batch += C::kBatch;
    }
    if (batch == list) return;
    __syncwarp();
    for (int i = threadIdx.x % 32; i < high; i += 32) list[i] = batch[i];
  }
};

// Tokens [token, ..) of `n` <- the sums of all lanes.
template <typename T, int kTokens>
__device__ __forceinline__ void finish(float (&acc)[kTokens], const BitmaskLinearArgs& args,
                                       int64_t n, int64_t token) {
  const int lane = threadIdx.x % 32;
  float sum = 0.0f;
#pragma unroll
  for (int m = 0; m < kTokens; ++m) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) acc[m] += __shfl_xor_sync(kAll, acc[m], d);
    if (lane == m) sum = acc[m];
  }
  if (lane >= kTokens || token + lane >= args.tokens) return;
  const Epilogue& e = args.epilogue;
  const float z = activate(fmaf(sum, scale_at(e, n), bias_at(e, n)), e.activation);
  static_cast<T*>(args.y)[(token + lane) * args.rows + n] = from_float<T>(z);
}

}  // namespace bitmask

template <typename T, typename S, int kTokens>
__global__ void __launch_bounds__(32 * bitmask::kMaxWarps, kTokens == 1 ? 2 : 1)
    bitmask_linear_kernel(BitmaskLinearArgs args, bitmask::Plan plan) {
  using C = bitmask::Config<T, S, kTokens>;
  static_assert(C::kChunk % bitmask::kStep == 0, "a chunk is whole steps");
  static_assert(C::kPlane <= 1 << 16, "a place in x fits 16 bits");
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32;
  uint16_t* list = reinterpret_cast<uint16_t*>(shared + plan.x_bytes) + warp * C::kList;
  const int64_t token = static_cast<int64_t>(blockIdx.x % plan.chunks) * kTokens;
  const int tokens =
      static_cast<int>(args.tokens - token < kTokens ? args.tokens - token : kTokens);
  const int64_t blocks = gridDim.x / plan.chunks, first_row = blockIdx.x / plan.chunks * plan.warps;
  const int64_t row_bytes = (args.columns + 7) / 8;

  for (int64_t base = first_row; base < args.rows; base += blocks * plan.warps) {
    const int64_t n = base + warp;
    bitmask::Stream<T, S, C> stream(args, n, list);
    float acc[kTokens] = {};
    for (int64_t first = 0; first < args.columns; first += C::kChunk) {
      const int64_t left = args.columns - first;
      const int count = left < C::kChunk ? static_cast<int>(left) : C::kChunk;
      if (base == first_row || args.columns > C::kChunk) {
        __syncthreads();
        few::stage<T, C>(shared, static_cast<const T*>(args.x), args.columns, token, tokens, first,
                         count + count % 2);
        __syncthreads();
      }
      if (n < args.rows) stream.run(acc, args.bits + n * row_bytes + first / 8, shared, count);
    }
    if (n < args.rows) bitmask::finish<T, kTokens>(acc, args, n, token);
  }
}

namespace bitmask {

template <typename T, typename S, int kTokens>
void run(const BitmaskLinearArgs& args, const DeviceLimits& limits, cudaStream_t stream) {
  using C = Config<T, S, kTokens>;
  const int64_t even = args.columns + args.columns % 2;
  const int staged = static_cast<int>(even < C::kChunk ? even : C::kChunk);
  const int x_bytes =
      static_cast<int>(ceil_div((C::kPlanes - 1) * C::kPlane + staged * C::kSlot, 16));
  Plan plan{kMaxWarps, static_cast<int>(ceil_div(args.tokens, kTokens)), 16 * x_bytes};
  const auto bytes = [&] { return plan.x_bytes + plan.warps * C::kList * 2; };
  if (args.rows * plan.chunks < kMaxWarps * limits.processors) plan.warps /= 2;
  while (bytes() > limits.shared_bytes && plan.warps > 1) plan.warps /= 2;
  int64_t blocks = ceil_div(args.rows, plan.warps);
  // where all of x is in shared memory, it serves several rows of a warp
  const int64_t enough = ceil_div(2 * limits.processors, plan.chunks);
  if (args.columns <= C::kChunk && blocks > enough) blocks = enough;
  launch(bitmask_linear_kernel<T, S, kTokens>, dim3(static_cast<unsigned>(blocks * plan.chunks)),
         32 * plan.warps, bytes(), stream, args, plan);
}

}  // namespace bitmask

void bitmask_linear(const BitmaskLinearArgs& args, const DeviceLimits& limits,
                    cudaStream_t stream) {
  if (args.rows == 0 || args.tokens == 0) return;
  if (bitmask_takes_mma(args)) return bitmask_linear_mma(args, stream);
  few::with_types(args.dtype, args.stored, [&](auto x, auto value) {
    using T = decltype(x);
    using S = decltype(value);
    if constexpr (sizeof(T) == 4) {
      few::with_tokens<T>(args.tokens, [&](auto tokens) {
        bitmask::run<T, S, decltype(tokens)::value>(args, limits, stream);
      });
    } else if constexpr (sizeof(S) == 2) {
      bitmask::run<T, S, 1>(args, limits, stream);
    }
  });
}

}  // namespace evoprune::cuda
