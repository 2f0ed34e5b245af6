// Kinds: how a packed weight of each form is multiplied with inputs, in vectors of the processor's own width.
//
// A kind multiplies units. A unit is 32 bits of input: a float, or as many neighboring inputs as the processor
// multiplies and adds at once. For each unit a packed weight holds PANEL output channels side by side.
//
// A kind has these members:
//   Weight, Unit, Vector         types of a stored weight, of a unit of input, and of a vector of sums
//   INPUTS                       inputs of a unit
//   load(w, low, high)           one unit of a panel, decoded to two vectors
//   broadcast(unit)              a vector with the unit in each lane
//   add_product(sum, x, w)       sum + x w
//   Decoded                      the kind of a decoded weight, with the same results. Where many rows use a weight and
//                                load decodes it, multiply.h decodes it once and then uses this kind.
#pragma once
#include "product.h"

// Rows of a tile. Each takes two vectors of sums; two weights, an input and a product take the other registers.
#if defined(__AVX512BW__)
constexpr int TILE_ROWS = 12;
#elif defined(__AVX__)
constexpr int TILE_ROWS = 6;
#elif defined(__aarch64__)
constexpr int TILE_ROWS = 8;
#else
constexpr int TILE_ROWS = 4;
#endif

// Two vectors that are stored as they are multiplied.
static inline void load_both(const void* w, Floats& low, Floats& high) {
  low = ((const Floats*)w)[0];
  high = ((const Floats*)w)[1];
  keep(low);
  keep(high);
}
static inline void load_both(const void* w, Ints& low, Ints& high) {
  Floats first, second;
  load_both(w, first, second);
  low = (Ints)first;
  high = (Ints)second;
}

// Weights that are decoded to floats: one input a unit, sums in float32, in the order of the inputs.
template <typename W>
struct AsFloat {
  typedef W Weight;
  typedef float Unit;
  typedef Floats Vector;
  typedef AsFloat<float> Decoded;
  static constexpr int INPUTS = 1;
  static Vector broadcast(float x) { return splat(x); }
  static Vector add_product(Vector sum, Vector x, Vector w) { return sum + x * w; }
  static void load(const W* w, Vector& low, Vector& high);
};

template <>
inline void AsFloat<float>::load(const float* w, Floats& low, Floats& high) {
  load_both(w, low, high);
}

// Channel i is stored beside channel i + LANES: a shift and a mask decode both from one word, without a shuffle.
template <>
inline void AsFloat<bf16>::load(const bf16* w, Floats& low, Floats& high) {
  const Words both = *(const Words*)w;
  low = (Floats)(both << 16);
  high = (Floats)(both & 0xffff0000u);
}

template <>
inline void AsFloat<f16>::load(const f16* w, Floats& low, Floats& high) {
  low = ::load(w);
  high = ::load(w + LANES);
}

template <>
inline void AsFloat<int8_t>::load(const int8_t* w, Floats& low, Floats& high) {
#if defined(__AVX512BW__)
  low = (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)w)));
  high = (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(w + LANES))));
#elif defined(__AVX2__)
  low = (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)w)));
  high = (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(w + LANES))));
#elif defined(__aarch64__)
  const int16x8_t both = vmovl_s8(vld1_s8(w));
  low = (Floats)vcvtq_f32_s32(vmovl_s16(vget_low_s16(both)));
  high = (Floats)vcvtq_f32_s32(vmovl_high_s16(both));
#else
  for (int i = 0; i < LANES; ++i) {
    low[i] = w[i];
    high[i] = w[LANES + i];
  }
#endif
}

// bfloat16 by bfloat16 in one instruction: two inputs a unit, sums in float32. Products are exact. x86 rounds each sum
// to the nearest float32, ARM to an odd one, with errors twice as large; both take subnormal numbers for zeros.
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define HAS_BF16_PAIRS 1
struct Bf16Pairs {
  typedef uint32_t Weight;
  typedef uint32_t Unit;
  typedef Floats Vector;
  typedef Bf16Pairs Decoded;
  static constexpr int INPUTS = 2;
  static Vector broadcast(uint32_t x) {
    Vector units = (Floats)(x - Words{});
    keep(units);  // clang 16 does not end where it sees through the casts
    return units;
  }
  static Vector add_product(Vector sum, Vector x, Vector w) {
#if defined(__AVX512BF16__)
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
    return (Floats)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)w, (bfloat16x8_t)x);
#endif
  }
  static void load(const uint32_t* w, Vector& low, Vector& high) { load_both(w, low, high); }
};
#else
#define HAS_BF16_PAIRS 0
#endif

// Integers with sums in int32, which are exact on every processor.
struct WholeNumbers {
  typedef uint32_t Unit;
  typedef Ints Vector;
  static Vector broadcast(uint32_t x) { return (Ints)(x - Words{}); }
};

// Two int16 by two int16, as Int16ByInt8 decodes them. On ARM a vector of weights holds the first of the two inputs for
// all its channels, then the second.
struct Int16 : WholeNumbers {
  typedef uint32_t Weight;
  typedef Int16 Decoded;
  typedef int16_t Input;
  static constexpr int INPUTS = 2, INPUT_OFFSET = 0;
  static Vector low_half(Vector x) { return (Vector)((Words)x << 16) >> 16; }
  static Vector add_product(Vector sum, Vector x, Vector w) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
#elif defined(__AVX512BW__)
    return sum + (Ints)_mm512_madd_epi16((__m512i)x, (__m512i)w);
#elif defined(__AVXVNNI__)
    return (Ints)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
#elif defined(__AVX2__)
    return sum + (Ints)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#elif defined(__aarch64__)
    const int16x8_t pair = (int16x8_t)x, both = (int16x8_t)w;
    const int32x4_t first = vmlal_laneq_s16((int32x4_t)sum, vget_low_s16(both), pair, 0);
    return (Ints)vmlal_high_laneq_s16(first, both, pair, 1);
#else
    return sum + low_half(x) * low_half(w) + (x >> 16) * (w >> 16);
#endif
  }
  static void load(const uint32_t* w, Vector& low, Vector& high) { load_both(w, low, high); }
};

// Two int16 by two int8.
struct Int16ByInt8 : Int16 {
  typedef uint16_t Weight;
  static void load(const uint16_t* w, Vector& low, Vector& high) {
#if defined(__AVX512BW__)
    low = (Ints)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)w));
    high = (Ints)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)(w + LANES)));
#elif defined(__AVX2__)
    low = (Ints)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)w));
    high = (Ints)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(w + LANES)));
#elif defined(__aarch64__)
    const uint8x16_t order = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};
    const int8x16_t bytes = vqtbl1q_s8(vld1q_s8((const int8_t*)w), order);
    low = (Ints)vmovl_s8(vget_low_s8(bytes));
    high = (Ints)vmovl_high_s8(bytes);
#else
    const int8_t* bytes = (const int8_t*)w;
    for (int i = 0; i < LANES; ++i) {
      low[i] = (bytes[2 * i] & 0xffff) | (int32_t)((uint32_t)bytes[2 * i + 1] << 16);
      high[i] = (bytes[PANEL + 2 * i] & 0xffff) | (int32_t)((uint32_t)bytes[PANEL + 2 * i + 1] << 16);
    }
#endif
  }
};

// int8 by int8: four inputs a unit where the processor has such an instruction. That of x86 takes inputs as unsigned
// bytes: 128 is added to each, and the sums are corrected by the weights' sums.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD)
struct Int8 : WholeNumbers {
  typedef uint32_t Weight;
  typedef Int8 Decoded;
#if defined(__ARM_FEATURE_DOTPROD)
  typedef int8_t Input;
  static constexpr int INPUTS = 4, INPUT_OFFSET = 0;
#else
  typedef uint8_t Input;
  static constexpr int INPUTS = 4, INPUT_OFFSET = 128;
#endif
  static Vector add_product(Vector sum, Vector x, Vector w) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
#elif defined(__AVXVNNI__)
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
#else
    return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x);
#endif
  }
  static void load(const uint32_t* w, Vector& low, Vector& high) { load_both(w, low, high); }
};
#else
typedef Int16ByInt8 Int8;
#endif
