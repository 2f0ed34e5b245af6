// Operations on single rows: layer norm, and copies of rows of a table.
#include "common.h"

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
