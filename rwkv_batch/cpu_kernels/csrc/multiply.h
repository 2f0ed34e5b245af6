// Rows times packed weights, by tiles that registers hold and blocks that caches hold.
//
// Each result is one chain of multiply-adds over the inputs in their order: neither the number of rows nor the way they
// are cut into tiles can change its bits.
#pragma once
#include <type_traits>
#include <vector>

#include "kinds.h"

// Blocks of rows and inputs that stay in the first two levels of a cache.
constexpr int64_t BLOCK_ROWS = 40 * TILE_ROWS, BLOCK_UNITS = 256;

// sums[p][r] += x[r] w[p] for ROWS rows and PANELS panels, all held in registers.
template <typename Kind, int ROWS, int PANELS>
static inline void tile(const typename Kind::Unit* __restrict x, int64_t x_stride,
                        const typename Kind::Weight* __restrict w, int64_t w_stride, int64_t units,
                        float* __restrict sums, int64_t sums_stride, bool is_first) {
  typedef typename Kind::Vector Vector;
  Vector sum[PANELS][ROWS][2];
  for (int p = 0; p < PANELS; ++p)
    for (int r = 0; r < ROWS; ++r)
      for (int h = 0; h < 2; ++h)
        sum[p][r][h] = is_first ? Vector{} : *(const Vector*)(sums + p * sums_stride + r * PANEL + h * LANES);
  for (int64_t k = 0; k < units; ++k) {
    Vector b[PANELS][2];
    for (int p = 0; p < PANELS; ++p) Kind::load(w + p * w_stride + k * PANEL, b[p][0], b[p][1]);
    for (int r = 0; r < ROWS; ++r) {
      const Vector a = Kind::broadcast(x[r * x_stride + k]);
      for (int p = 0; p < PANELS; ++p)
        for (int h = 0; h < 2; ++h) sum[p][r][h] = Kind::add_product(sum[p][r][h], a, b[p][h]);
    }
  }
  for (int p = 0; p < PANELS; ++p)
    for (int r = 0; r < ROWS; ++r)
      for (int h = 0; h < 2; ++h) *(Vector*)(sums + p * sums_stride + r * PANEL + h * LANES) = sum[p][r][h];
}

// Tiles of rows from which on expanding a weight takes less time than it saves.
constexpr int64_t TILES_TO_EXPAND = 3;

template <typename Kind>
static void expand(const typename Kind::Weight* w, int64_t units, float* expanded) {
  for (int64_t k = 0; k < units * PANEL; k += PANEL) {
    typename Kind::Vector low, high;
    Kind::load(w + k, low, high);
    *(typename Kind::Vector*)(expanded + k) = low;
    *(typename Kind::Vector*)(expanded + k + LANES) = high;
  }
}

// Part t of `parts` of the next block of weights: it comes nearer while tiles are busy with this one.
template <typename Weight>
static inline void bring_nearer(const Weight* next, int64_t t, int64_t parts) {
  constexpr int64_t LINES = BLOCK_UNITS * PANEL * sizeof(Weight) / 64;
  for (int64_t i = t * LINES / parts; i < (t + 1) * LINES / parts; ++i)
    __builtin_prefetch((const char*)next + i * 64, 0, 2);
}

// Few rows read a weight once; to keep the units busy they take several panels side by side.
constexpr int64_t panels_at_once(int64_t rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

template <typename Kind, int ROWS = TILE_ROWS>
static void tile_of(int64_t rows, int64_t panels, const typename Kind::Unit* x, int64_t x_stride,
                    const typename Kind::Weight* w, int64_t w_stride, int64_t units, float* sums, int64_t sums_stride,
                    bool is_first) {
  if constexpr (ROWS > 0) {
    if (rows != ROWS)
      return tile_of<Kind, ROWS - 1>(rows, panels, x, x_stride, w, w_stride, units, sums, sums_stride, is_first);
    constexpr int MOST = panels_at_once(ROWS);
    if (panels == MOST) return tile<Kind, ROWS, MOST>(x, x_stride, w, w_stride, units, sums, sums_stride, is_first);
    for (int64_t p = 0; p < panels; ++p)
      tile<Kind, ROWS, 1>(x, x_stride, w + p * w_stride, w_stride, units, sums + p * sums_stride, sums_stride,
                          is_first);
  }
}

// Multiplies M rows with each of `count` weights.
//
// Form says what is particular to a form of weight: the Kind; what it keeps of a row besides its units (Row), by
// prepare(product, x, units); what it knows of a panel's n channels from `first` on, by channels(product, first, n);
// and scale(channels, row, sums, v), which makes results v of sums.
template <typename T, typename Form>
static void multiply(const Product* products, int64_t count, int64_t num_rows) {
  typedef typename Form::Kind Kind;
  typedef typename Kind::Expanded Expanded;
  typedef typename Kind::Unit Unit;
  struct Part {
    int64_t units, stride, first_unit, panels, first_group;
  };
  thread_local std::vector<Unit> all_units;
  thread_local std::vector<typename Form::Row> all_rows;
  const int64_t block_rows = std::min(BLOCK_ROWS, num_rows);
  std::vector<Part> parts(count);
  int64_t size = 0;
  for (int64_t i = 0; i < count; ++i) {
    Part& part = parts[i];
    part.units = (products[i].inputs + Kind::INPUTS - 1) / Kind::INPUTS;
    part.stride = part.units + 16;  // no power of two: rows would compete for the same lines of the cache
    part.first_unit = size;
    part.panels = (products[i].outputs + PANEL - 1) / PANEL;
    size += block_rows * part.stride;
  }
  all_units.resize(size);
  all_rows.resize(count * block_rows);
  Unit* const units = all_units.data();
  typename Form::Row* const kept = all_rows.data();
  for (int64_t first_row = 0; first_row < num_rows; first_row += block_rows) {
    const int64_t rows = std::min(block_rows, num_rows - first_row);
    const int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, most = panels_at_once(rows);
    const int64_t sums_stride = rows * PANEL;
    const bool expands =
        !std::is_same<typename Expanded::Weight, typename Kind::Weight>::value && tiles >= TILES_TO_EXPAND;
    int64_t groups = 0;
    for (Part& part : parts) {
      part.first_group = groups;
      groups += (part.panels + most - 1) / most;
    }
#pragma omp parallel
    {
#pragma omp for collapse(2) schedule(static)
      for (int64_t i = 0; i < count; ++i)
        for (int64_t row = 0; row < rows; ++row) {
          const T* x = (const T*)products[i].x + (first_row + row) * products[i].inputs;
          kept[i * block_rows + row] =
              Form::prepare(products[i], x, units + parts[i].first_unit + row * parts[i].stride);
        }
      thread_local std::vector<float> own_sums;
      own_sums.resize(most * sums_stride + BLOCK_UNITS * PANEL);
      float *const sums = own_sums.data(), *const expanded = sums + most * sums_stride;
#pragma omp for schedule(guided) nowait
      for (int64_t group = 0; group < groups; ++group) {
        int64_t i = 0;
        while (i + 1 < count && group >= parts[i + 1].first_group) ++i;
        const Part& part = parts[i];
        const int64_t panel = (group - part.first_group) * most, panels = std::min(most, part.panels - panel);
        const int64_t w_stride = part.units * PANEL, depth = tiles == 1 ? part.units : BLOCK_UNITS;
        const auto* weight = (const typename Kind::Weight*)products[i].weight + panel * w_stride;
        const Unit* x = units + part.first_unit;
        for (int64_t k = 0; k < part.units; k += depth) {
          const int64_t some = std::min(depth, part.units - k);
          if (expands) expand<Kind>(weight + k * PANEL, some, expanded);
          for (int64_t t = 0, row = 0; t < tiles; ++t) {
            const int64_t size = rows / tiles + (t < rows % tiles);
            if (expands) bring_nearer(weight + (k + some) * PANEL, t, tiles);
            const Unit* own = x + row * part.stride + k;
            if (expands)
              tile_of<Expanded>(size, 1, own, part.stride, (const typename Expanded::Weight*)expanded, 0, some,
                                sums + row * PANEL, sums_stride, k == 0);
            else
              tile_of<Kind>(size, panels, own, part.stride, weight + k * PANEL, w_stride, some, sums + row * PANEL,
                            sums_stride, k == 0);
            row += size;
          }
        }
        for (int64_t p = 0; p < panels; ++p)
          finish<T, Form>(products[i], first_row, rows, (panel + p) * PANEL, sums + p * sums_stride,
                          kept + i * block_rows);
      }
    }
  }
}
