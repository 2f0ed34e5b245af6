// Layer norm, token shift and n interpolations in one pass over the tokens.
#include <algorithm>

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
static void normalize(const ShiftLerp& p, int64_t token, float* z) {
  const T* x = (const T*)p.x + token * p.width;
  const T *weight = (const T*)p.weight, *bias = (const T*)p.bias;
  for (int64_t i = 0; i < p.width; ++i) z[i] = to_float(x[i]);
  const float mean = sum_of(z, (int)p.width) / p.width;
  float partial[16] = {};
  int64_t i = 0;
  for (; i + 16 <= p.width; i += 16)
    for (int j = 0; j < 16; ++j) partial[j] += (z[i + j] - mean) * (z[i + j] - mean);
  for (int j = 0; j < 16 && i + j < p.width; ++j) partial[j] += (z[i + j] - mean) * (z[i + j] - mean);
  float variance = 0;
  for (int j = 0; j < 16; ++j) variance += partial[j];
  const float scale = 1.0f / std::sqrt(variance / p.width + 1e-5f);
  T* normed = (T*)p.normed + token * p.width;
  for (i = 0; i < p.width; ++i)
    normed[i] = from_float<T>((z[i] - mean) * scale * to_float(weight[i]) + to_float(bias[i]));
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

template <typename T>
static void run(const ShiftLerp& p) {
#pragma omp parallel
  {
    float* z = new float[p.width];
#pragma omp for schedule(static)
    for (int64_t token = 0; token < p.num_tokens; ++token) normalize<T>(p, token, z);
    delete[] z;
#pragma omp for schedule(static)
    for (int64_t token = 0; token < p.num_tokens; ++token) {
      const int64_t row = std::upper_bound(p.rows.start, p.rows.start + p.rows.num_rows + 1, token) - p.rows.start - 1;
      const int32_t slot = p.rows.slot[row];
      const T* self = (const T*)p.normed + token * p.width;
      const T* kept = slot < 0 ? self : (const T*)p.shift + slot * p.slot_stride;
      interpolate<T>(p, token, token > p.rows.start[row] ? self - p.width : kept);
    }
#pragma omp for schedule(static)
    for (int64_t row = 0; row < p.rows.num_rows; ++row) {
      if (p.rows.slot[row] < 0) continue;
      const T* latest = (const T*)p.normed + (int64_t)(p.rows.start[row + 1] - 1) * p.width;
      std::memcpy((T*)p.shift + p.rows.slot[row] * p.slot_stride, latest, p.width * sizeof(T));
    }
  }
}

#define DEFINE(NAME, T) \
  extern "C" void NAME(const ShiftLerp* p) { run<T>(*p); }
FOR_EACH_DTYPE(DEFINE, shift_lerp)
