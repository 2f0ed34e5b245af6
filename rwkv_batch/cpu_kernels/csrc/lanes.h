// Several numbers at a time, in the compiler's vector types: eight where there are registers for them, else four.
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

constexpr int TILE = 64;  // a row is gone through in tiles; one has as many tokens as a word has bits

static inline Floats load(const float* x) {
  Floats y;
  std::memcpy(&y, x, sizeof y);
  return y;
}

static inline void store(float* x, Floats y) { std::memcpy(x, &y, sizeof y); }

static inline Floats all(float x) { return x - Floats{}; }

// The larger of each pair; `than` where one is NaN.
static inline Floats larger(Floats x, Floats than) {
#ifdef __AVX2__
  return (Floats)_mm256_max_ps((__m256)x, (__m256)than);
#else
  return x > than ? x : than;
#endif
}

// All lanes joined into one number, in a fixed order.
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

// 2^x for x <= 0, in place: the error is about one unit in the last place; 2^-125 for all below. Some NaNs become
// numbers, by whatever bits they carry.
// Several vectors at a time, step by step, as each step waits for the one before.
template <int N>
static inline void exp2_of(Floats (&x)[N]) {
  Floats shifted[N], p[N];
  const Floats lowest = all(-125.0f);
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
  for (int k = 0; k < N; ++k) x[k] = (Floats)((Ints)p[k] + ((Ints)shifted[k] << 23));
}

// 2^((x - base) * rate) of one number: the same bits.
static inline float exp2_of(float x, float base, float rate) {
  Floats y[1] = {(all(x) - base) * rate};
  exp2_of(y);
  return y[0][0];
}

// Sum of 2^((x - base) * rate) over TILE numbers, NaN if one of them is; or over those that are at least `low`.
template <bool SOME = false>
static inline float mass_of(const float* x, float base, float rate, float low = 0) {
  constexpr int N = 4;
  Floats total[N] = {}, any[N] = {};
  for (int i = 0; i < TILE; i += N * WIDTH) {
    Floats y[N];
    for (int k = 0; k < N; ++k) y[k] = (load(x + i + k * WIDTH) - base) * rate;
    for (int k = 0; !SOME && k < N; ++k) any[k] = (Floats)((Ints)any[k] | (Ints)(y[k] != y[k]));
    exp2_of(y);
    for (int k = 0; SOME && k < N; ++k) y[k] = (Floats)((Ints)y[k] & (Ints)(load(x + i + k * WIDTH) >= low));
    for (int k = 0; k < N; ++k) total[k] += y[k];
  }
  // The bits of what is not a number are all set, which is a NaN.
  if (!SOME)
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

// What this thread keeps from call to call: memory, mostly. Out of line, so that its address is asked for only once.
template <typename T>
__attribute__((noinline)) static T& own() {
  static thread_local T object;
  return object;
}
