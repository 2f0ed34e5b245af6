// Vectors of the processor's own width, in the compiler's vector types; loads and stores convert each element type.
#pragma once
#include "common.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512BW__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2), aligned(2)));

static inline Floats splat(float x) { return x - Floats{}; }

static inline Floats load(const float* x) { return *(const Floats*)x; }

static inline Floats load(const bf16* x) { return (Floats)(__builtin_convertvector(*(const Halves*)x, Words) << 16); }

static inline Floats load(const f16* x) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)x));
#elif defined(__AVX__) && defined(__F16C__)
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)x));
#elif defined(__aarch64__)
  return (Floats)vcvt_f32_f16(vld1_f16((const float16_t*)x));
#else
  Floats y;
  for (int i = 0; i < LANES; ++i) y[i] = to_float(x[i]);
  return y;
#endif
}

static inline void store(float* x, Floats y) { *(Floats*)x = y; }

// Rounds as from_float does.
static inline void store(bf16* x, Floats y) {
  const Words bits = (Words)y, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *(Halves*)x = __builtin_convertvector(y == y ? rounded : Words{} + 0x7fc0, Halves);
}

static inline void store(f16* x, Floats y) {
#if defined(__AVX512BW__)
  _mm256_storeu_si256((__m256i*)x, _mm512_cvtps_ph((__m512)y, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX__) && defined(__F16C__)
  _mm_storeu_si128((__m128i*)x, _mm256_cvtps_ph((__m256)y, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
  vst1_f16((float16_t*)x, vcvt_f16_f32((float32x4_t)y));
#else
  for (int i = 0; i < LANES; ++i) x[i] = from_float<f16>(y[i]);
#endif
}

// Holds a vector in a register: GCC would otherwise read it from memory again for each use.
static inline void keep(Floats& x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
}
