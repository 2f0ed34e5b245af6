// Operations on single rows: layer norm, copies of rows of a table, and interpolations.
#include "vectors.h"

struct LayerNorm {
  int64_t num_rows, width;
  const void *x, *weight, *bias;  // [M, C], [C], [C]
  void* y;                        // [M, C]
};

struct TakeRows {
  int64_t table_rows, num_rows, row_bytes;
  const char* table;     // [n, C]
  const int64_t* index;  // [M]
  char* out;             // [M, C]
};

struct Ddlerp {
  int64_t count, num_rows, width;
  const void *normed, *delta, *mix;  // [M, C], [M, C], [n, C]
  void* shares;                      // [n, M, C]: replaced by the interpolations
};

// Bytes, or inputs, that one thread takes at a time.
constexpr int64_t TILE = 1 << 15;

template <typename T>
static void run(const LayerNorm& p) {
  const auto normalize = [&](int64_t row) {
    layer_norm((const T*)p.x + row * p.width, p.width, (const T*)p.weight, (const T*)p.bias, (T*)p.y + row * p.width);
  };
  for_each_even_tile(p.num_rows, normalize, std::max<int64_t>(1, TILE / p.width));
}

#define DEFINE(NAME, T) \
  extern "C" int32_t NAME(const void* p) { return run<T>(*(const LayerNorm*)p), 0; }
FOR_EACH_DTYPE(DEFINE, layer_norm)

template <typename T>
static void run(const Ddlerp& p) {
  const auto interpolate = [&p](int64_t tile) {
    const T* normed = (const T*)p.normed + tile % p.num_rows * p.width;
    const T* delta = (const T*)p.delta + tile % p.num_rows * p.width;
    const T* mix = (const T*)p.mix + tile / p.num_rows * p.width;
    T* shares = (T*)p.shares + tile * p.width;
    int64_t i = 0;
    for (; i + LANES <= p.width; i += LANES)
      store(shares + i, load(normed + i) + load(delta + i) * (load(shares + i) + load(mix + i)));
    for (; i < p.width; ++i)
      shares[i] = from_float<T>(to_float(normed[i]) + to_float(delta[i]) * (to_float(shares[i]) + to_float(mix[i])));
  };
  for_each_even_tile(p.count * p.num_rows, interpolate, std::max<int64_t>(1, TILE / p.width));
}

#define DEFINE_DDLERP(NAME, T) \
  extern "C" int32_t NAME(const void* p) { return run<T>(*(const Ddlerp*)p), 0; }
FOR_EACH_DTYPE(DEFINE_DDLERP, ddlerp)

static int32_t run(const TakeRows& p) {
  for (int64_t i = 0; i < p.num_rows; ++i)
    if (p.index[i] < 0 || p.index[i] >= p.table_rows) return (int32_t)i + 1;
  const auto copy = [&p](int64_t i) {
    std::memcpy(p.out + i * p.row_bytes, p.table + p.index[i] * p.row_bytes, p.row_bytes);
  };
  for_each_even_tile(p.num_rows, copy, std::max<int64_t>(1, TILE / p.row_bytes));
  return 0;
}

// 1 + the first place of the index that is no row of the table, and then nothing is written; 0 if there is none.
extern "C" int32_t take_rows(const void* p) { return run(*(const TakeRows*)p); }
