// float16 as memory holds it, and its conversions. Compilers before GCC 12 and clang 15 have no type for it on x86.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__aarch64__)

struct f16 {
  __fp16 value;
};
static inline float to_float(f16 x) { return (float)x.value; }
static inline f16 to_float16(float x) { return f16{(__fp16)x}; }

#elif (defined(__clang__) ? __clang_major__ >= 15 : __GNUC__ >= 12) && defined(__SSE2__)

struct f16 {
  _Float16 value;
};
static inline float to_float(f16 x) { return (float)x.value; }
static inline f16 to_float16(float x) { return f16{(_Float16)x}; }

#else

struct f16 {
  uint16_t bits;
};

// The bits of one number as another of the same size.
template <typename To, typename From>
static inline To as_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "of the same size");
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

static inline float to_float(f16 x) {
  const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, magnitude = (uint32_t)(x.bits & 0x7fff) << 13;
  const float scaled = as_bits<float>(magnitude) * 0x1p112f;  // exponents are biased by 15 in place of 127
  const bool is_finite = magnitude < 0x0f800000;
  return as_bits<float>(sign | (is_finite ? as_bits<uint32_t>(scaled) : magnitude | 0x7f800000));
}

// Rounds to the nearest, halves to even.
static inline f16 to_float16(float x) {
  const uint32_t sign = as_bits<uint32_t>(x) >> 16 & 0x8000, magnitude = as_bits<uint32_t>(x) & 0x7fffffff;
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  const uint32_t small = as_bits<uint32_t>(as_bits<float>(magnitude) + 0.5f) - 0x3f000000;  // the sum rounds it
  uint32_t bits = magnitude < 0x38800000 ? small : normal;
  if (magnitude >= 0x477ff000) bits = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  return f16{(uint16_t)(sign | bits)};
}

#endif
