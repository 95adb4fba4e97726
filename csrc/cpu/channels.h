// Walks over the units of a ChannelLayout (cpu/gates.h), a vector at a time. What is done at each
// vector is a lambda that gets a *place*: where to load and store, and which lanes count.
//
//   Whole   a full vector
//   Few     fewer elements than a vector: the others load as 0 and are not stored
//   Rest    the last vector of a plane, of which the first lanes were seen before and load as 0
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd_types.h"

namespace evoprune::EVOPRUNE_ISA {

struct Whole {
  int64_t at;
  template <typename T>
  EVOPRUNE_INLINE VecOf<T> get(const T* p) const {
    return load(p + at);
  }
  template <typename T>
  EVOPRUNE_INLINE void put(T* p, VecOf<T> v) const {
    store(p + at, v);
  }
  template <typename V>
  EVOPRUNE_INLINE V counted(V v) const {
    return v;
  }
};

struct Few {
  int64_t at, count;
  template <typename T>
  EVOPRUNE_INLINE VecOf<T> get(const T* p) const {
    T buffer[kLanes] = {};
    std::memcpy(buffer, p + at, static_cast<size_t>(count) * sizeof(T));
    return load(buffer);
  }
  template <typename T>
  EVOPRUNE_INLINE void put(T* p, VecOf<T> v) const {
    T buffer[kLanes];
    store(buffer, v);
    std::memcpy(p + at, buffer, static_cast<size_t>(count) * sizeof(T));
  }
  template <typename V>
  EVOPRUNE_INLINE V counted(V v) const {
    return keep<V>(lanes_from_zero<V>() < (V{} + static_cast<float>(count)), v);
  }
};

struct Rest {
  int64_t at;
  int seen;
  template <typename T>
  EVOPRUNE_INLINE VecOf<T> get(const T* p) const {
    return counted(load(p + at));
  }
  template <typename V>
  EVOPRUNE_INLINE V counted(V v) const {
    return keep<V>(lanes_from_zero<V>() >= (V{} + static_cast<float>(seen)), v);
  }
};

// ---- planes ----
// put(place, value(place)) for all n elements; some of the last may be done twice, with the same
// result. Vectors are read by fours before they are written, so that no read waits for a write.
template <typename Value, typename Put>
EVOPRUNE_INLINE void map_plane(int64_t n, Value value, Put put) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    const auto v0 = value(Whole{i}), v1 = value(Whole{i + kLanes});
    const auto v2 = value(Whole{i + 2 * kLanes}), v3 = value(Whole{i + 3 * kLanes});
    put(Whole{i}, v0), put(Whole{i + kLanes}, v1);
    put(Whole{i + 2 * kLanes}, v2), put(Whole{i + 3 * kLanes}, v3);
  }
  const auto one = [&](auto place) { put(place, value(place)); };
  for (; i + kLanes <= n; i += kLanes) one(Whole{i});
  if (i == n) return;
  if (n >= kLanes)
    one(Whole{n - kLanes});
  else
    one(Few{0, n});
}

// out[k] = sum over n elements of what term(sums, place) adds to sums[k]. Sums are taken in pieces
// (kSumPiece), Chains of them side by side.
template <typename T, int K, int Chains, typename Term>
EVOPRUNE_INLINE void sum_plane(int64_t n, ScalarOf<T>* out, Term term) {
  using V = VecOf<T>;
  constexpr int64_t kStep = Chains * kLanes;
  V total[K] = {};
  int64_t i = 0;
  while (i + kStep <= n) {
    V sums[Chains][K] = {};
    const int64_t last = i + (kSumPiece - 1) * kStep;
    for (; i + kStep <= n && i <= last; i += kStep)
      for (int c = 0; c < Chains; ++c) term(sums[c], Whole{i + c * kLanes});
    for (int c = 0; c < Chains; ++c)
      for (int k = 0; k < K; ++k) total[k] += sums[c][k];
  }
  for (; i + kLanes <= n; i += kLanes) term(total, Whole{i});
  if (i < n && n >= kLanes) term(total, Rest{n - kLanes, static_cast<int>(i + kLanes - n)});
  if (i < n && n < kLanes) term(total, Few{0, n});
  for (int k = 0; k < K; ++k) out[k] = sum(total[k]);
}

// What a plane is of.
struct Plane {
  int64_t part, channel;
  int64_t coefficient;  // its place in [groups, channels]
  int64_t begin;        // its first element

  EVOPRUNE_INLINE void next(const ChannelLayout& l) {  // without a division
    begin += l.inner;
    const bool last = ++channel == l.channels;
    part += last;
    channel = last ? 0 : channel;
    coefficient = l.per_sample ? coefficient + 1 : channel;
  }
};
EVOPRUNE_INLINE Plane plane_of(const ChannelLayout& l, int64_t unit) {
  const int64_t channel = unit % l.channels;
  return {unit / l.channels, channel, l.per_sample ? unit : channel, unit * l.inner};
}

// ---- rows ----
// Rows [count, channels] from element `begin` on; their coefficients start at `group`.
struct Block {
  int64_t part, count, group, begin;
};
EVOPRUNE_INLINE Block block_of(const ChannelLayout& l, int64_t unit) {
  const int64_t group = l.group_of(unit);
  const int64_t row = group * l.group_rows() + unit % l.blocks() * kRowBlock;
  return {unit, l.count_of(unit), group * l.channels, row * l.channels};
}

// A row of coefficients, repeated until it is long enough for an inner loop: rows of few channels are
// walked several at once.
template <typename S>
class LongRow {
 public:
  // Whether `row` was another one before.
  EVOPRUNE_INLINE bool set(const S* row, int64_t channels) {
    if (row == given_) return false;
    given_ = row;
    rows_ = kLength / channels > 1 ? kLength / channels : 1;
    for (int64_t r = 0; rows_ > 1 && r < rows_; ++r)
      std::memcpy(repeated_ + r * channels, row, static_cast<size_t>(channels) * sizeof(S));
    return true;
  }
  EVOPRUNE_INLINE int64_t rows() const { return rows_; }
  EVOPRUNE_INLINE const S* at() const { return rows_ > 1 ? repeated_ : given_; }

 private:
  static constexpr int64_t kLength = 256;
  const S* given_ = nullptr;
  int64_t rows_ = 1;
  S repeated_[kLength];
};

// One column of vectors of R rows: each.template operator()<R>(first element, place of the channels).
template <int R, typename Each>
EVOPRUNE_INLINE void walk_columns(int64_t channels, int64_t at, Each each) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) each.template operator()<R>(at, Whole{c});
  if (c < channels) each.template operator()<R>(at, Few{c, channels - c});
}
// All vectors of a block, four rows at once: what is kept per channel is read once for the four.
template <typename Each>
EVOPRUNE_INLINE void walk_rows(int64_t channels, const Block& block, Each each) {
  int64_t r = 0;
  for (; r + 4 <= block.count; r += 4) walk_columns<4>(channels, block.begin + r * channels, each);
  for (; r < block.count; ++r) walk_columns<1>(channels, block.begin + r * channels, each);
}

}  // namespace evoprune::EVOPRUNE_ISA
