// Products with weights of a float type.
#include "multiply.h"

struct Nothing {};

// Weights without scales: sums are results.
struct Unscaled {
  typedef Nothing Row;
  static Nothing channels(const Product&, int64_t, int) { return {}; }
  static void scale(Nothing, Nothing, const float* sums, float* v) {
    for (int i = 0; i < PANEL; i += LANES) store(v + i, load(sums + i));
  }
};

template <typename T, typename W>
struct Dense : Unscaled {
  typedef AsFloat<W> Kind;
  static Nothing prepare(const Product& p, const T* x, float* units) {
    int64_t k = 0;
    for (; k + LANES <= p.inputs; k += LANES) store(units + k, load(x + k));
    for (; k < p.inputs; ++k) units[k] = to_float(x[k]);
    return {};
  }
};

#if HAS_BF16_PAIRS
struct DensePairs : Unscaled {
  typedef Bf16Pairs Kind;
  static Nothing prepare(const Product& p, const bf16* x, uint32_t* units) {
    if (p.inputs % 2) units[p.inputs / 2] = x[p.inputs - 1].bits;
    std::memcpy(units, x, p.inputs / 2 * sizeof(uint32_t));
    return {};
  }
};
template <>
struct Dense<bf16, bf16> : DensePairs {};
#endif

extern "C" int64_t panel_width() { return PANEL; }
extern "C" int64_t has_bfloat16_pairs() { return HAS_BF16_PAIRS; }

#define DEFINE(NAME, T) \
  extern "C" int32_t NAME(const void* p) { return multiply<T, Dense<T, T>>(*(const Products*)p), 0; }
FOR_EACH_DTYPE(DEFINE, linear)
