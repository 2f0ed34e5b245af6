// Vectors of the compiler: eight floats where the processor has such registers, else four.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifdef __AVX__
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
typedef float Floats __attribute__((vector_size(WIDTH * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(WIDTH * sizeof(int32_t))));
typedef uint32_t Words __attribute__((vector_size(WIDTH * sizeof(uint32_t))));

constexpr int TILE = 64;  // tokens of a tile: as many as a word has bits

static inline Floats load(const float* x) {
  Floats y;
  std::memcpy(&y, x, sizeof y);
  return y;
}

static inline void store(float* x, Floats y) { std::memcpy(x, &y, sizeof y); }

static inline Floats splat(float x) { return x - Floats{}; }

// The larger of each pair; `other` where one of the two is NaN.
static inline Floats larger(Floats x, Floats other) {
#ifdef __AVX2__
  return (Floats)_mm256_max_ps((__m256)x, (__m256)other);
#else
  return x > other ? x : other;
#endif
}

// Reduces all lanes to one number, in a fixed order.
template <typename Join>
static inline float joined(Floats x, Join join) {
  typedef float Four __attribute__((vector_size(16)));
  Four part[WIDTH / 4];
  std::memcpy(part, &x, sizeof x);
  const Four y = WIDTH == 4 ? part[0] : join(part[0], part[WIDTH / 4 - 1]);
  const Four z = join(y, Four{y[2], y[3], y[0], y[1]});
  return join(z, Four{z[1], z[0], z[3], z[2]})[0];
}

static inline float largest(Floats x) {
  return joined(x, [](auto a, auto b) { return a > b ? a : b; });
}

static inline float sum(Floats x) {
  return joined(x, [](auto a, auto b) { return a + b; });
}

constexpr float LOG2_E = 1.44269504088896341f;

// 2^x for x <= 0, in place, with an error of about one unit in the last place; 2^-125 for x below -125. NaN inputs give
// unspecified values, which may be finite. N vectors take each step together: one vector's steps depend on each other.
template <int N>
static inline void exp2_of(Floats (&x)[N]) {
  Floats shifted[N], p[N];
  const Floats lowest = splat(-125.0f);
  for (int k = 0; k < N; ++k) x[k] = larger(lowest, x[k]);
  for (int k = 0; k < N; ++k) shifted[k] = x[k] + 12582912.0f;  // the low bits are now those of the nearest integer
  for (int k = 0; k < N; ++k) p[k] = shifted[k] - 12582912.0f;
  for (int k = 0; k < N; ++k) x[k] -= p[k];
  for (int k = 0; k < N; ++k) p[k] = x[k] * 1.53533620e-4f + 1.33988745e-3f;
  for (int k = 0; k < N; ++k) p[k] = p[k] * x[k] + 9.61843736e-3f;
  for (int k = 0; k < N; ++k) p[k] = p[k] * x[k] + 5.55033247e-2f;
  for (int k = 0; k < N; ++k) p[k] = p[k] * x[k] + 2.40226479e-1f;
  for (int k = 0; k < N; ++k) p[k] = p[k] * x[k] + 6.93147203e-1f;
  for (int k = 0; k < N; ++k) p[k] = p[k] * x[k] + 1.0f;
  for (int k = 0; k < N; ++k) x[k] = (Floats)((Words)p[k] + ((Words)shifted[k] << 23));
}

// 2^((x - base) * rate) of one number, with the same bits as in a vector.
static inline float exp2_of(float x, float base, float rate) {
  Floats y[1] = {(splat(x) - base) * rate};
  exp2_of(y);
  return y[0][0];
}

// Sum of 2^((x - base) * rate) over TILE numbers; NaN if one of them is NaN. HAS_LOW: over the numbers from `low` up;
// NaNs are left out.
template <bool HAS_LOW = false>
static inline float mass_of(const float* x, float base, float rate, float low = 0) {
  constexpr int N = 4;
  Floats total[N] = {}, any[N] = {};
  for (int i = 0; i < TILE; i += N * WIDTH) {
    Floats y[N];
    for (int k = 0; k < N; ++k) y[k] = (load(x + i + k * WIDTH) - base) * rate;
    for (int k = 0; !HAS_LOW && k < N; ++k) any[k] = (Floats)((Ints)any[k] | (Ints)(y[k] != y[k]));
    exp2_of(y);
    for (int k = 0; HAS_LOW && k < N; ++k) y[k] = (Floats)((Ints)y[k] & (Ints)(load(x + i + k * WIDTH) >= low));
    for (int k = 0; k < N; ++k) total[k] += y[k];
  }
  // A comparison that holds sets all bits, and a float with all bits set is a NaN.
  if (!HAS_LOW)
    for (int k = 0; k < N; ++k) total[k] = (Floats)((Ints)total[k] | (Ints)any[k]);
  return sum((total[0] + total[1]) + (total[2] + total[3]));
}

// Bit i is set where x[i] >= limit, of TILE numbers.
static inline uint64_t at_least(const float* x, float limit) {
  uint64_t bits = 0;
#ifdef __AVX2__
  const __m256 limits = _mm256_set1_ps(limit);
  for (int i = 0; i < TILE; i += WIDTH) {
    const __m256 is_above = _mm256_cmp_ps(_mm256_loadu_ps(x + i), limits, _CMP_GE_OQ);
    bits |= (uint64_t)(uint32_t)_mm256_movemask_ps(is_above) << i;
  }
#else
  for (int i = 0; i < TILE; ++i) bits |= (uint64_t)(x[i] >= limit) << i;
#endif
  return bits;
}
