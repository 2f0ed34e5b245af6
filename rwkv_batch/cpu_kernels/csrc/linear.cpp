// Products with weights of a float type.
#include "product.h"

struct Nothing {};

template <typename T, typename W>
struct Dense {
  typedef AsFloat<W> Kind;
  typedef Nothing Row;
  static Row prepare(const Product& p, const T* x, float* units) {
    for (int64_t k = 0; k < p.inputs; ++k) units[k] = to_float(x[k]);
    return {};
  }
  static void scale(const Product&, int64_t, int, float*, Row) {}
};

#if HAS_BF16_PAIRS
struct DensePairs {
  typedef Bf16Pairs Kind;
  typedef Nothing Row;
  static Row prepare(const Product& p, const bf16* x, uint32_t* units) {
    if (p.inputs % 2) units[p.inputs / 2] = x[p.inputs - 1].bits;
    std::memcpy(units, x, p.inputs / 2 * sizeof(uint32_t));
    return {};
  }
  static void scale(const Product&, int64_t, int, float*, Row) {}
};
template <> struct Dense<bf16, bf16> : DensePairs {};
#endif

extern "C" int64_t panel_width() { return PANEL; }
extern "C" int64_t has_bfloat16_pairs() { return HAS_BF16_PAIRS; }

#define DEFINE(NAME, T)                                               \
  extern "C" void NAME(const Product* p, int64_t count, int64_t rows) { \
    multiply<T, Dense<T, T>>(p, count, rows);                         \
  }
FOR_EACH_DTYPE(DEFINE, linear)
