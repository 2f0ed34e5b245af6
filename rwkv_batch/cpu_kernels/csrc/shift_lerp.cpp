// Layer norm, token shift and n interpolations in one pass over the tokens.
#include "common.h"

struct ShiftLerp {
  Rows rows;
  int64_t width, num_tokens, num_mixes, slot_stride;
  const void *x, *weight, *bias;  // [M, C], [C], [C]
  const void* mix;                // [n, C]
  void* shift;                    // slot s at + s * slot_stride
  void *normed, *delta, *mixed;   // [M, C], [M, C], [n, M, C]
};

template <typename T>
static void normalize(const ShiftLerp& p, int64_t token, T* normed) {
  layer_norm((const T*)p.x + token * p.width, p.width, (const T*)p.weight, (const T*)p.bias, normed);
}

template <typename T>
static void interpolate(const ShiftLerp& p, int64_t token, const T* previous) {
  const T* z = (const T*)p.normed + token * p.width;
  T* delta = (T*)p.delta + token * p.width;
  for (int64_t i = 0; i < p.width; ++i) delta[i] = from_float<T>(to_float(previous[i]) - to_float(z[i]));
  for (int64_t j = 0; j < p.num_mixes; ++j) {
    const T* mix = (const T*)p.mix + j * p.width;
    T* out = (T*)p.mixed + (j * p.num_tokens + token) * p.width;
    for (int64_t i = 0; i < p.width; ++i)
      out[i] = from_float<T>(to_float(z[i]) + to_float(delta[i]) * to_float(mix[i]));
  }
}

// Tokens from `first` to `last` - 1. They wait for no other ones: the norm of the token before the first one is
// computed here again, and whoever has the first token of a row, which needs what the slot holds, replaces that by the
// norm of the row's last token.
template <typename T>
static void advance(const ShiftLerp& p, int64_t first, int64_t last) {
  std::vector<T>& before = thread_object<std::vector<T>>();
  before.resize(p.width);
  const int32_t* start = p.rows.start;
  int64_t row = std::upper_bound(start, start + p.rows.num_rows + 1, first) - start - 1;
  for (int64_t token = first; token < last; ++token) {
    while (token >= start[row + 1]) ++row;
    T* normed = (T*)p.normed + token * p.width;
    normalize(p, token, normed);
    if (token > start[row]) {
      if (token == first) normalize(p, token - 1, before.data());
      interpolate<T>(p, token, token == first ? before.data() : normed - p.width);
    } else if (p.rows.slot[row] < 0) {
      interpolate<T>(p, token, normed);
    } else {
      T* kept = (T*)p.shift + p.rows.slot[row] * p.slot_stride;
      interpolate<T>(p, token, kept);
      if (token == start[row + 1] - 1) std::copy_n(normed, p.width, kept);
      else normalize(p, start[row + 1] - 1, kept);
    }
  }
}

constexpr int64_t TILE_INPUTS = 1 << 14;

template <typename T>
static void run(const ShiftLerp& p) {
  const int64_t length = std::max<int64_t>(1, TILE_INPUTS / p.width);
  for_each_tile((p.num_tokens + length - 1) / length,
                [&](int64_t tile) { advance<T>(p, tile * length, std::min((tile + 1) * length, p.num_tokens)); });
}

#define DEFINE(NAME, T) \
  extern "C" int32_t NAME(const void* p) { return run<T>(*(const ShiftLerp*)p), 0; }
FOR_EACH_DTYPE(DEFINE, shift_lerp)
