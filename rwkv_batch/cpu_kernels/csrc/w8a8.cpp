// Products of whole numbers: int8 weights with a scale for each output channel, inputs of 8 or 16 bits with one a row.
#include "product.h"

struct Scale { float value; };

// What makes the largest magnitude `levels`; 1 for zeros; NaN if one of the inputs is not finite.
template <typename T>
static float scale_of(const T* x, int64_t n, float levels) {
  float largest[16] = {}, poison[16] = {};
  int64_t k = 0;
  for (; k + 16 <= n; k += 16)
    for (int i = 0; i < 16; ++i) {
      const float value = std::fabs(to_float(x[k + i]));
      largest[i] = value > largest[i] ? value : largest[i];
      poison[i] += value * 0.0f;
    }
  for (int i = 0; k + i < n; ++i) {
    const float value = std::fabs(to_float(x[k + i]));
    largest[i] = value > largest[i] ? value : largest[i];
    poison[i] += value * 0.0f;
  }
  float most = 0, poisoned = 0;
  for (int i = 0; i < 16; ++i) {
    most = std::max(most, largest[i]);
    poisoned += poison[i];
  }
  const float scale = most / levels;
  return (scale > 0 ? scale : 1) + poisoned;
}

// The nearest whole number, halves to the even one; within ±levels also where a tiny scale has lost its digits, or is NaN.
static inline int32_t whole(float x, float levels) {
  const float bounded = x > -levels ? x : -levels;
  return (int32_t)__builtin_rintf(bounded < levels ? bounded : levels);
}

template <typename T, typename Numbers>
struct Quantised {
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
  static void scale(const Product& p, int64_t first, int n, float* v, Row row) {
    const float* scale = p.scale + first;
    const int32_t* weight_sums = p.weight_sums + first;
    for (int i = 0; i < n; ++i) {
      int32_t sum;
      std::memcpy(&sum, v + i, 4);
      v[i] = (float)(sum - Kind::INPUT_OFFSET * weight_sums[i]) * (row.value * scale[i]);
    }
  }
};

extern "C" int64_t int8_inputs() { return Int8::INPUTS; }

#define DEFINE_W8A8(NAME, T)                                              \
  extern "C" void NAME(const Product* p, int64_t count, int64_t rows) {   \
    multiply<T, Quantised<T, Int8>>(p, count, rows);                      \
  }
FOR_EACH_DTYPE(DEFINE_W8A8, w8a8)

#define DEFINE_W8A16(NAME, T)                                             \
  extern "C" void NAME(const Product* p, int64_t count, int64_t rows) {   \
    multiply<T, Quantised<T, Int16ByInt8>>(p, count, rows);               \
  }
FOR_EACH_DTYPE(DEFINE_W8A16, w8a16)
