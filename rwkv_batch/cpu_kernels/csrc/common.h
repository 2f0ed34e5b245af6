// Types and vectorizable mathematics that all kernels share. No torch headers.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "float16.h"
#include "parallel.h"

struct bf16 {
  uint16_t bits;
};

static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) {
  uint32_t bits = (uint32_t)x.bits << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

template <typename T>
static inline T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline bf16 from_float<bf16>(float x) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return bf16{(uint16_t)(x == x ? rounded : 0x7fc0)};
}
template <>
inline f16 from_float<f16>(float x) {
  return to_float16(x);
}

// e^x with an error of about one unit in the last place, in operations that compilers vectorize.
static inline float fast_exp(float x) {
  x = x < -87.3f ? -87.3f : x;
  x = x > 88.7f ? 88.7f : x;
  const float n = __builtin_floorf(x * 1.44269504088896341f + 0.5f);
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float moved = n + 12582912.0f;  // the low bits are now those of n, also where a conversion of NaN is undefined
  uint32_t bits;
  std::memcpy(&bits, &moved, 4);
  bits = (bits + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return p * scale;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

// The tokens and the slot of each row; slot -1 is padding. A copy of the struct is in cpu_kernels/call.py.
struct Rows {
  int64_t num_rows;
  const int32_t* slot;   // [B]
  const int32_t* start;  // [B + 1]
};

// Neighboring parts of a state that a thread takes at a time: several, as their memory is adjacent, but few enough
// that every thread gets at least two chunks.
static inline int64_t chunk_size(int64_t parts) { return std::clamp<int64_t>(parts / (2 * region_threads()), 1, 4); }

// Zeros, the output of padding.
template <typename T, typename Params>
static void clear_head(const Params& p, int64_t row, int64_t head) {
  for (int64_t token = p.rows.start[row]; token < p.rows.start[row + 1]; ++token)
    std::fill_n((T*)p.out + (token * p.num_heads + head) * p.size, p.size, T{});
}

// Prefetches n floats.
static inline void prefetch_row(const float* x, int n) {
  for (int i = 0; i < n; i += 16) __builtin_prefetch(x + i, 1, 3);
}

// The state of a tile, which is one head of one row; null for padding and past the last row.
template <typename Params>
static inline float* state_of(const Params& p, int64_t tile) {
  const int64_t row = tile / p.num_heads, head = tile % p.num_heads;
  if (row >= p.rows.num_rows || p.rows.slot[row] < 0) return nullptr;
  return p.state + p.rows.slot[row] * p.slot_stride + head * p.size * p.size;
}

// Calls advance(token, head, state of the head, state that comes next) for every token of every row, in order. Heads
// run in parallel. The state that comes next, of the next token or the next head, is there to be prefetched.
template <typename T, typename Params, typename Advance>
static void for_each_head(const Params& p, Advance advance) {
  const int64_t chunk = chunk_size(p.rows.num_rows * p.num_heads);
  const auto advance_head = [&](int64_t tile) {
    const int64_t row = tile / p.num_heads, head = tile % p.num_heads;
    float* const state = state_of(p, tile);
    if (!state) return clear_head<T>(p, row, head);
    const float* next = state_of(p, tile + 1);
    const int32_t end = p.rows.start[row + 1];
    for (int32_t token = p.rows.start[row]; token < end; ++token)
      advance(token, head, state, token + 1 < end || !next ? state : next);
  };
  for_each_tile(p.rows.num_rows * p.num_heads, advance_head, chunk);
}

constexpr int MAX_HEAD = 256;

// The sum of n numbers in a fixed order: 16 partial sums, then their sum.
static inline float sum_of(const float* x, int n) {
  float partial[16] = {};
  int i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) partial[j] += x[i + j];
  for (int j = 0; j < 16 && i + j < n; ++j) partial[j] += x[i + j];
  float total = 0;
  for (int j = 0; j < 16; ++j) total += partial[j];
  return total;
}

// Group norm of one head's output, in place.
static inline void head_norm(float* y, int n, const float* weight, const float* bias, float eps) {
  float squares[MAX_HEAD];
  const float mean = sum_of(y, n) / n;
  for (int i = 0; i < n; ++i) {
    y[i] -= mean;
    squares[i] = y[i] * y[i];
  }
  const float scale = 1.0f / std::sqrt(sum_of(squares, n) / n + eps);
  for (int i = 0; i < n; ++i) y[i] = y[i] * scale * weight[i] + bias[i];
}

// Memory of `layer_norm`. A type of its own: its callers may keep vectors for each thread too.
struct Widened {
  std::vector<float> values;
};

// Layer norm of one row. Statistics are float32.
template <typename T>
static void layer_norm(const T* x, int64_t width, const T* weight, const T* bias, T* y) {
  std::vector<float>& z = thread_object<Widened>().values;
  z.resize(width);
  for (int64_t i = 0; i < width; ++i) z[i] = to_float(x[i]);
  const float mean = sum_of(z.data(), (int)width) / width;
  float partial[16] = {};
  int64_t i = 0;
  for (; i + 16 <= width; i += 16)
    for (int j = 0; j < 16; ++j) partial[j] += (z[i + j] - mean) * (z[i + j] - mean);
  for (int j = 0; j < 16 && i + j < width; ++j) partial[j] += (z[i + j] - mean) * (z[i + j] - mean);
  float variance = 0;
  for (int j = 0; j < 16; ++j) variance += partial[j];
  const float scale = 1.0f / std::sqrt(variance / width + 1e-5f);
  for (i = 0; i < width; ++i) y[i] = from_float<T>((z[i] - mean) * scale * to_float(weight[i]) + to_float(bias[i]));
}

#define FOR_EACH_DTYPE(DEFINE, NAME) \
  DEFINE(NAME##_float32, float)      \
  DEFINE(NAME##_bfloat16, bf16)      \
  DEFINE(NAME##_float16, f16)
