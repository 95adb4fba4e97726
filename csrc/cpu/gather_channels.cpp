// gather_channels and scatter_channels: chosen channels alone, and back into zeros.
//
//   gather    y[b, k, ...] = x[b, index[k], ...]
//   scatter   y[b, index[k], ...] = x[b, k, ...], every other channel 0; no index twice
//
//   contiguous      x [sample][channel][inner]   a channel of a sample is one run of memory
//   channels_last   x [sample, place][channel]   a place is one row: "inner" is 1, samples are places
//
// Work unit: a sample (of channels_last: a place). Values are moved, never read as numbers: exact.
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace evoprune::EVOPRUNE_ISA {

// Bytes of y that are zeroed at once, before channels are scattered into them: they stay in L1.
static constexpr int64_t kZeroed = 8192;

// Rows of single elements.
template <typename T>
static void gather_elements(const MoveChannelsArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.x) + row * a.channels;
    T* y = static_cast<T*>(a.y) + row * a.kept;
    for (int64_t k = 0; k < a.kept; ++k) y[k] = x[a.index[k]];
  }
}

template <typename T>
static void scatter_elements(const MoveChannelsArgs& a, int64_t begin, int64_t end) {
  const int64_t row_bytes = a.channels * static_cast<int64_t>(sizeof(T));
  const int64_t rows = 1 + kZeroed / row_bytes;
  for (int64_t first = begin; first < end; first += rows) {
    const int64_t last = first + rows < end ? first + rows : end;
    T* y = static_cast<T*>(a.y) + first * a.channels;
    std::memset(y, 0, static_cast<size_t>((last - first) * row_bytes));
    const T* x = static_cast<const T*>(a.x) + first * a.kept;
    for (int64_t row = first; row < last; ++row, x += a.kept, y += a.channels)
      for (int64_t k = 0; k < a.kept; ++k) y[a.index[k]] = x[k];
  }
}

template <typename T>
static void move_elements(const MoveChannelsArgs& a, int64_t begin, int64_t end) {
  a.scatter ? scatter_elements<T>(a, begin, end) : gather_elements<T>(a, begin, end);
}

static void move_runs(const MoveChannelsArgs& a, int64_t begin, int64_t end) {
  const int64_t run = a.inner * a.element_bytes;
  const size_t bytes = static_cast<size_t>(run);
  for (int64_t sample = begin; sample < end; ++sample) {
    const int64_t many = sample * a.channels * run, few = sample * a.kept * run;
    if (a.scatter) {
      const char* x = static_cast<const char*>(a.x) + few;
      char* y = static_cast<char*>(a.y) + many;
      for (int64_t c = 0; c < a.channels; ++c) {
        if (a.place[c] < 0)
          std::memset(y + c * run, 0, bytes);
        else
          std::memcpy(y + c * run, x + a.place[c] * run, bytes);
      }
    } else {
      const char* x = static_cast<const char*>(a.x) + many;
      char* y = static_cast<char*>(a.y) + few;
      for (int64_t k = 0; k < a.kept; ++k) std::memcpy(y + k * run, x + a.index[k] * run, bytes);
    }
  }
}

void move_channels(const MoveChannelsArgs& a, int64_t begin, int64_t end) {
  if (a.inner != 1) return move_runs(a, begin, end);
  switch (a.element_bytes) {
    case 1:
      return move_elements<uint8_t>(a, begin, end);
    case 2:
      return move_elements<uint16_t>(a, begin, end);
    case 4:
      return move_elements<uint32_t>(a, begin, end);
    case 8:
      return move_elements<uint64_t>(a, begin, end);
    default:
      return move_runs(a, begin, end);
  }
}

}  // namespace evoprune::EVOPRUNE_ISA
