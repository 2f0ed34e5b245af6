// Products with 8-bit weights, which are never dequantized as a whole; see `mm8` in models/matrices/mm8_linear.py.
//
// With c = q - 128 and z = x * input_scale, both as they are in float32:
//   y[n] = scale[n] (sum_k z[k] c[k, n] + 128.5 sum z) + minimum[n] sum x + sum x * input_minimum
// where all but the first sum, which differ in sign and nearly cancel, are float64.
#include "multiply.h"

struct RowSums {
  double z, x, x_minimum;
};
struct ScaleAndMinimum {
  float scale[PANEL], minimum[PANEL];
};

template <typename T>
struct Mm8 {
  typedef AsFloat<int8_t> Kind;
  typedef RowSums Row;
  static Row prepare(const Product& p, const T* x, float* units) {
    Row sums{};
    for (int64_t k = 0; k < p.inputs; ++k) {
      const float value = to_float(x[k]), z = value * p.input_scale[k];
      sums.x += value;
      sums.x_minimum += (double)value * p.input_minimum[k];
      sums.z += z;
      units[k] = z;
    }
    return sums;
  }
  static ScaleAndMinimum channels(const Product& p, int64_t first, int n) {
    ScaleAndMinimum channels;
    copy_panel(channels.scale, p.scale + first, n);
    copy_panel(channels.minimum, p.minimum + first, n);
    return channels;
  }
  static void scale(const ScaleAndMinimum& channels, const Row& row, const float* sums, float* v) {
    for (int i = 0; i < PANEL; ++i)
      v[i] = (float)(channels.scale[i] * (sums[i] + 128.5 * row.z) + channels.minimum[i] * row.x + row.x_minimum);
  }
};

#define DEFINE(NAME, T) \
  extern "C" int32_t NAME(const void* p) { return multiply<T, Mm8<T>>(*(const Products*)p), 0; }
FOR_EACH_DTYPE(DEFINE, mm8)
