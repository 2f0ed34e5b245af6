// Integer products: int8 weights with a scale for each output channel, inputs of 8 or 16 bits with a scale for each
// row.
#include "multiply.h"

struct Scale {
  float value;
};
struct ScaleAndSum {
  float scale[PANEL];
  int32_t weight_sum[PANEL];
};

// The scale: largest magnitude / levels; 1 for a row of zeros; NaN if one of the inputs is not finite.
template <typename T>
static float scale_of(const T* x, int64_t n, float levels) {
  constexpr int32_t MAGNITUDE = 0x7fffffff, INFINITE = 0x7f800000;  // magnitudes order like their bits
  Ints largest{};
  int64_t k = 0;
  for (; k + LANES <= n; k += LANES) {
    const Ints magnitude = (Ints)load(x + k) & MAGNITUDE;
    largest = magnitude > largest ? magnitude : largest;
  }
  for (int i = 0; k < n; ++i, ++k) {
    const Ints magnitude = (Ints)splat(to_float(x[k])) & MAGNITUDE;
    largest[i] = std::max(largest[i], magnitude[0]);
  }
  int32_t most = 0;
  for (int i = 0; i < LANES; ++i) most = std::max(most, largest[i]);
  if (most >= INFINITE) return NAN;
  float magnitude;
  std::memcpy(&magnitude, &most, 4);
  const float scale = magnitude / levels;
  return scale > 0 ? scale : 1;
}

// The nearest integer, halves to even. Within +-levels also where a subnormal scale is inexact; NaN gives -levels.
static inline int32_t whole(float x, float levels) {
  const float bounded = x > -levels ? x : -levels;
  return (int32_t)__builtin_rintf(bounded < levels ? bounded : levels);
}

template <typename T, typename Numbers>
struct Quantized {
  typedef Numbers Kind;
  typedef Scale Row;
  static Row prepare(const Product& p, const T* x, uint32_t* units) {
    const float scale = scale_of(x, p.inputs, (float)p.levels);
    typename Kind::Input* q = (typename Kind::Input*)units;
    for (int64_t k = 0; k < p.inputs; ++k)
      q[k] = (typename Kind::Input)(whole(to_float(x[k]) / scale, (float)p.levels) + Kind::INPUT_OFFSET);
    for (int64_t k = p.inputs; k % Kind::INPUTS; ++k) q[k] = Kind::INPUT_OFFSET;
    return {scale};
  }
  static ScaleAndSum channels(const Product& p, int64_t first, int n) {
    ScaleAndSum channels;
    copy_panel(channels.scale, p.scale + first, n);
    copy_panel(channels.weight_sum, p.weight_sums + first, n);
    return channels;
  }
  static void scale(const ScaleAndSum& channels, Row row, const float* sums, float* v) {
    for (int i = 0; i < PANEL; i += LANES) {
      const Words offset = Kind::INPUT_OFFSET * *(const Words*)(channels.weight_sum + i);
      const Ints sum = (Ints)(*(const Words*)(sums + i) - offset);
      store(v + i, __builtin_convertvector(sum, Floats) * (row.value * load(channels.scale + i)));
    }
  }
};

extern "C" int64_t int8_inputs() { return Int8::INPUTS; }

#define DEFINE_W8A8(NAME, T) \
  extern "C" int32_t NAME(const void* p) { return multiply<T, Quantized<T, Int8>>(*(const Products*)p), 0; }
FOR_EACH_DTYPE(DEFINE_W8A8, w8a8)

#define DEFINE_W8A16(NAME, T) \
  extern "C" int32_t NAME(const void* p) { return multiply<T, Quantized<T, Int16ByInt8>>(*(const Products*)p), 0; }
FOR_EACH_DTYPE(DEFINE_W8A16, w8a16)
