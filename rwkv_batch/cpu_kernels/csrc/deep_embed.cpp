// The middle of DeepEmbed's gate: a vector of rank R times the matrix of the row's token. The product before it, from C
// to R, and the product after it, from R to F, have dense weights and are calls of `linear`.
#include "vectors.h"

struct DeepEmbed {
  int64_t num_rows, table_rows, rank, width;
  const void* low;           // [M, R]
  const void* table;         // [V, R, R]
  const int64_t* token_ids;  // [M]
  const void* s0;            // [F]
  void* turned;              // [M, R]: low times the token's matrix
  void* gate;                // [M, F]: s0, to which the product after this one is added
};

// Output channels that are summed together.
constexpr int64_t CHANNELS = 4 * LANES;

// The sums of n channels from `first` on, n <= CHANNELS.
template <typename T>
static void multiply(const T* low, const T* matrix, int64_t rank, int64_t first, int64_t n, T* turned) {
  if (n == CHANNELS) {
    Floats sums[4] = {};
    for (int64_t k = 0; k < rank; ++k)
      for (int i = 0; i < 4; ++i) sums[i] += splat(to_float(low[k])) * load(matrix + k * rank + first + i * LANES);
    for (int i = 0; i < 4; ++i) store(turned + first + i * LANES, sums[i]);
  } else {
    float sums[CHANNELS] = {};
    for (int64_t k = 0; k < rank; ++k)
      for (int64_t i = 0; i < n; ++i) sums[i] += to_float(low[k]) * to_float(matrix[k * rank + first + i]);
    for (int64_t i = 0; i < n; ++i) turned[first + i] = from_float<T>(sums[i]);
  }
}

template <typename T>
static int32_t run(const DeepEmbed& p) {
  for (int64_t row = 0; row < p.num_rows; ++row)
    if (p.token_ids[row] < 0 || p.token_ids[row] >= p.table_rows) return (int32_t)row + 1;
  const auto turn = [&p](int64_t row) {
    const T* low = (const T*)p.low + row * p.rank;
    const T* matrix = (const T*)p.table + p.token_ids[row] * p.rank * p.rank;
    for (int64_t first = 0; first < p.rank; first += CHANNELS)
      multiply(low, matrix, p.rank, first, std::min(CHANNELS, p.rank - first), (T*)p.turned + row * p.rank);
    std::memcpy((T*)p.gate + row * p.width, p.s0, p.width * sizeof(T));
  };
  for_each_even_tile(p.num_rows, turn);
  return 0;
}

// 1 + the first row whose token is none of the table, and then nothing is written; 0 if there is none.
#define DEFINE(NAME, T) \
  extern "C" int32_t NAME(const void* p) { return run<T>(*(const DeepEmbed*)p); }
FOR_EACH_DTYPE(DEFINE, deep_embed)
