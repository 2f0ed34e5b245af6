// Instructions that the processor at hand may lack, in plain vectors: included before a source is compiled, it makes
// that source believe in AVX-512 with bfloat16 and bytes (EMULATE=512), without the two (510), or in AVX-VNNI (256).
#pragma once
#include <immintrin.h>
#include <cstdint>
#include <cstring>

template <typename T, typename V>
static inline T part(const V& v, int i) {
  T x;
  std::memcpy(&x, (const char*)&v + i * sizeof(T), sizeof(T));
  return x;
}

template <typename V, typename F>
static inline V each_word(F f) {
  V y;
  for (int i = 0; i < (int)(sizeof(V) / 4); ++i) {
    const auto x = f(i);
    static_assert(sizeof(x) == 4, "a word");
    std::memcpy((char*)&y + 4 * i, &x, 4);
  }
  return y;
}

static inline float float_of(uint16_t bf16) {
  const uint32_t bits = (uint32_t)bf16 << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

template <typename V>
static inline V emulated_dpbusd(V sum, V x, V w) {
  return each_word<V>([&](int i) {
    int32_t y = part<int32_t>(sum, i);
    for (int j = 4 * i; j < 4 * i + 4; ++j) y += (int32_t)part<uint8_t>(x, j) * part<int8_t>(w, j);
    return y;
  });
}

template <typename V>
static inline V emulated_dpwssd(V sum, V x, V w) {
  return each_word<V>([&](int i) {
    int32_t y = part<int32_t>(sum, i);
    for (int j = 2 * i; j < 2 * i + 2; ++j) y += (int32_t)part<int16_t>(x, j) * part<int16_t>(w, j);
    return y;
  });
}

template <typename V>
static inline __m512i emulated_cvtepi8_epi32(V v) {
  return each_word<__m512i>([&](int i) { return (int32_t)part<int8_t>(v, i); });
}

template <typename V>
static inline __m512i emulated_cvtepi8_epi16(V v) {
  return each_word<__m512i>(
      [&](int i) { return (uint32_t)(uint16_t)part<int8_t>(v, 2 * i) | (uint32_t)part<int8_t>(v, 2 * i + 1) << 16; });
}

template <typename V>
static inline __m512 emulated_cvtepi32_ps(V v) {
  return each_word<__m512>([&](int i) { return (float)part<int32_t>(v, i); });
}

template <typename V>
static inline __m512 emulated_cvtph_ps(V v) {
  return each_word<__m512>([&](int i) { return (float)part<_Float16>(v, i); });
}

template <typename V>
static inline __m256i emulated_cvtps_ph(V v, int) {
  return each_word<__m256i>([&](int i) {
    const _Float16 pair[2] = {(_Float16)part<float>(v, 2 * i), (_Float16)part<float>(v, 2 * i + 1)};
    return part<uint32_t>(pair, 0);
  });
}

template <typename V>
static inline __m512i emulated_madd_epi16(V v, V u) {
  return each_word<__m512i>([&](int i) {
    return (int32_t)part<int16_t>(v, 2 * i) * part<int16_t>(u, 2 * i) +
           (int32_t)part<int16_t>(v, 2 * i + 1) * part<int16_t>(u, 2 * i + 1);
  });
}

template <typename S, typename V>
static inline S emulated_dpbf16(S sum, V x, V w) {
  return each_word<S>([&](int i) {
    const float odd = float_of(part<uint16_t>(x, 2 * i + 1)) * float_of(part<uint16_t>(w, 2 * i + 1));
    return part<float>(sum, i) + odd + float_of(part<uint16_t>(x, 2 * i)) * float_of(part<uint16_t>(w, 2 * i));
  });
}

#if EMULATE == 256
#define __AVXVNNI__ 1
#define _mm256_dpbusd_avx_epi32 emulated_dpbusd
#define _mm256_dpwssd_avx_epi32 emulated_dpwssd
#else
#define __AVX512F__ 1
#define __AVX512BW__ 1
#define asm(...)  // of registers that the processor lacks
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32
#define _mm512_cvtepi8_epi16 emulated_cvtepi8_epi16
#define _mm512_cvtph_ps emulated_cvtph_ps
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph emulated_cvtps_ph
#define _mm512_madd_epi16 emulated_madd_epi16
#endif
#if EMULATE == 512
#define __AVX512BF16__ 1
#define __AVX512VNNI__ 1
#define _mm512_dpbusd_epi32 emulated_dpbusd
#define _mm512_dpwssd_epi32 emulated_dpwssd
#define _mm512_dpbf16_ps emulated_dpbf16
#endif
