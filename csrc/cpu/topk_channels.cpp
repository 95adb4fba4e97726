// topk_channels: the indices of the k highest scores of a row, ascending; and what ranks the channels
// of a gradient, the sums of |x| of each.
//
//   keys (select/rank.h)  ->  the k-th largest key, 8 bits a pass from the top  ->  index
//
// Ties: the lowest index wins; NaN ranks last. Exact. A work unit of topk_channels is a row; of
// channel_sizes see cpu/gates.h: a part is one unit's, so that the order of threads cannot change it.
#include "cpu/channels.h"
#include "select/rank.h"

namespace evoprune::EVOPRUNE_ISA {

EVOPRUNE_INLINE uint32_t key_of(float score) {
  uint32_t bits;
  std::memcpy(&bits, &score, 4);
  return select::rank_key(bits, select::kInfinityF32);
}

// The k-th largest key of a row (k >= 1), and how many of the keys equal to it are kept.
static uint32_t threshold_of(const float* scores, int64_t channels, int64_t k, int64_t& equal) {
  uint32_t prefix = 0, known = 0;  // known: the bits of prefix that are decided
  for (int shift = 24; shift >= 0; shift -= 8) {
    int64_t counts[256] = {};
    for (int64_t c = 0; c < channels; ++c) {
      const uint32_t key = key_of(scores[c]);
      counts[(key >> shift) & 255u] += (key & known) == prefix;
    }
    uint32_t digit = 255;
    for (; counts[digit] < k; --digit) k -= counts[digit];
    prefix |= digit << shift;
    known |= 255u << shift;
  }
  equal = k;
  return prefix;
}

void topk_channels(const TopkChannelsArgs& a, int64_t begin, int64_t end) {
  if (a.k == 0) return;
  for (int64_t row = begin; row < end; ++row) {
    const float* scores = a.scores + row * a.channels;
    int64_t* index = a.index + row * a.k;
    int64_t equal = 0;
    const uint32_t threshold = threshold_of(scores, a.channels, a.k, equal);
    for (int64_t c = 0; c < a.channels; ++c) {
      const uint32_t key = key_of(scores[c]);
      if (key > threshold || (key == threshold && equal-- > 0)) *index++ = c;
    }
  }
}

template <typename T>
static void sizes_of_planes(const ChannelSizesArgs& a, int64_t begin, int64_t end) {
  using V = VecOf<T>;
  for (int64_t unit = begin; unit < end; ++unit) {
    const T* x = static_cast<const T*>(a.x) + unit * a.layout.inner;
    sum_plane<T, 1, 4>(a.layout.inner, static_cast<ScalarOf<T>*>(a.parts) + unit,
                       [&](V* sums, auto place) { sums[0] += size_of(place.get(x)); });
  }
}

template <typename T>
static void sizes_of_rows(const ChannelSizesArgs& a, int64_t begin, int64_t end) {
  using V = VecOf<T>;
  const int64_t channels = a.layout.channels;
  for (int64_t unit = begin; unit < end; ++unit) {
    const Block block = block_of(a.layout, unit);
    auto* parts = static_cast<ScalarOf<T>*>(a.parts) + block.part * channels;
    std::memset(parts, 0, static_cast<size_t>(channels) * sizeof(*parts));
    walk_rows(channels, block, [&]<int R>(int64_t at, auto place) {
      V sums = place.get(parts);
      for (int r = 0; r < R; ++r, at += channels)
        sums += size_of(place.get(static_cast<const T*>(a.x) + at));
      place.put(parts, sums);
    });
  }
}

void channel_sizes(const ChannelSizesArgs& a, int64_t begin, int64_t end) {
  with_type(a.layout.dtype, [&]<typename T>() {
    a.layout.rows ? sizes_of_rows<T>(a, begin, end) : sizes_of_planes<T>(a, begin, end);
  });
}

}  // namespace evoprune::EVOPRUNE_ISA
