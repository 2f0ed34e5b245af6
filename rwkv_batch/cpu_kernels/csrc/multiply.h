// Rows times packed weights, in tiles whose sums stay in registers and in blocks that stay in caches.
//
// Each result is one chain of multiply-adds over the inputs in their order: neither the number of rows nor the tiles
// change its bits. From the outside to the inside:
//   block   BLOCK_ROWS rows, prepared once: their units stay in the second level of the cache (run)
//   group   the panels of a weight that a thread multiplies with all rows of a block (run_group)
//   depth   BLOCK_UNITS units of a group's weights: they stay in the first level while all tiles of rows use them
//   tile    up to TILE_ROWS rows by one to four panels, whose sums stay in registers (multiply_tile)
#pragma once
#include <type_traits>
#include <vector>

#include "kinds.h"

constexpr int64_t BLOCK_ROWS = 40 * TILE_ROWS, BLOCK_UNITS = 256;

// The distance, in bytes, at which a tile prefetches the weights that it will read.
constexpr int64_t AHEAD = 4096;

template <int64_t BYTES>
static inline void prefetch(const void* first) {
  for (int64_t byte = 0; byte < BYTES; byte += 64) __builtin_prefetch((const char*)first + byte, 0, 3);
}

// sums[p][r] += x[r] w[p] for ROWS rows and PANELS panels, all held in registers.
template <typename Kind, bool IS_IN_CACHE, int ROWS, int PANELS>
static inline void add_tile(const typename Kind::Unit* __restrict x, int64_t x_stride,
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
    for (int p = 0; p < PANELS; ++p) {
      const typename Kind::Weight* unit = w + p * w_stride + k * PANEL;
      if constexpr (!IS_IN_CACHE) prefetch<sizeof(*unit) * PANEL>((const char*)unit + AHEAD);
      Kind::load(unit, b[p][0], b[p][1]);
    }
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

// Tiles of rows from which on decoding a weight once takes less time than decoding it for each tile.
constexpr int64_t TILES_TO_DECODE = 3;

// Decodes `units` units of one panel to floats.
template <typename Kind>
static void decode(const typename Kind::Weight* w, int64_t units, float* decoded) {
  for (int64_t k = 0; k < units * PANEL; k += PANEL) {
    typename Kind::Vector low, high;
    Kind::load(w + k, low, high);
    *(typename Kind::Vector*)(decoded + k) = low;
    *(typename Kind::Vector*)(decoded + k + LANES) = high;
  }
}

// Prefetches part t of `parts` of the BLOCK_UNITS units that follow, a part with each tile that uses those at hand.
template <typename Weight>
static inline void prefetch_lines(const Weight* next, int64_t t, int64_t parts) {
  constexpr int64_t LINES = BLOCK_UNITS * PANEL * sizeof(Weight) / 64;
  for (int64_t i = t * LINES / parts; i < (t + 1) * LINES / parts; ++i)
    __builtin_prefetch((const char*)next + i * 64, 0, 2);
}

// A tile of few rows has few sums: several panels side by side keep the multipliers busy. Three rows by two panels take
// more than 16 registers.
constexpr int64_t panels_per_tile(int64_t rows) {
  return rows == 1 ? 4 : rows == 2 || (rows == 3 && TILE_ROWS > 6) ? 2 : 1;
}

// add_tile for numbers of rows and panels that are known at run time only: rows <= ROWS, panels <=
// panels_per_tile(rows).
template <typename Kind, bool IS_IN_CACHE, int ROWS = TILE_ROWS>
static void multiply_tile(int64_t rows, int64_t panels, const typename Kind::Unit* x, int64_t x_stride,
                          const typename Kind::Weight* w, int64_t w_stride, int64_t units, float* sums,
                          int64_t sums_stride, bool is_first) {
  if constexpr (ROWS > 0) {
    if (rows != ROWS)
      return multiply_tile<Kind, IS_IN_CACHE, ROWS - 1>(rows, panels, x, x_stride, w, w_stride, units, sums,
                                                        sums_stride, is_first);
    constexpr int MOST = panels_per_tile(ROWS);
    if (panels == MOST)
      return add_tile<Kind, IS_IN_CACHE, ROWS, MOST>(x, x_stride, w, w_stride, units, sums, sums_stride, is_first);
    for (int64_t p = 0; p < panels; ++p)
      add_tile<Kind, IS_IN_CACHE, ROWS, 1>(x, x_stride, w + p * w_stride, w_stride, units, sums + p * sums_stride,
                                           sums_stride, is_first);
  }
}

// Several products that share their number of rows.
//
// Form is what is particular to a form of weight:
//   Kind                             how units and weights are multiplied (kinds.h)
//   Row                              what is kept of a row besides its units
//   prepare(product, x, units)       writes a row's units, and returns its Row
//   channels(product, first, n)      scales and the like of a panel's n channels, from channel `first` on
//   scale(channels, row, sums, v)    sums of a panel -> results v
template <typename T, typename Form>
class Multiplication {
  typedef typename Form::Kind Kind;
  typedef typename Kind::Decoded Decoded;
  typedef typename Kind::Unit Unit;
  typedef typename Form::Row Row;

 public:
  Multiplication(const Product* products, int64_t count, int64_t num_rows)
      : products(products), count(count), num_rows(num_rows), block_rows(std::min(BLOCK_ROWS, num_rows)) {
    lay_out();
  }

  void run() {
    for (int64_t first_row = 0; first_row < num_rows; first_row += block_rows) {
      const int64_t rows = std::min(block_rows, num_rows - first_row);
      const int64_t num_groups = number_groups(panels_per_tile(rows));
      const Block block = {first_row, rows, (rows + TILE_ROWS - 1) / TILE_ROWS, panels_per_tile(rows)};
      prepare(block);
      for_each_even_tile(num_groups, [&](int64_t group) {
        std::vector<float>& buffer = thread_object<std::vector<float>>();  // sums of a group, then decoded units
        buffer.resize(block.panels * rows * PANEL + BLOCK_UNITS * PANEL);
        run_group(block, group, buffer.data());
      });
    }
  }

 private:
  // Places of one product's units and panels.
  struct Layout {
    int64_t units, stride, first_unit;  // units of a row; from row to row; of the product's first row
    int64_t panels, first_group;
  };

  struct Block {
    int64_t first_row, rows, tiles, panels;  // `panels` of a group
  };

  const Product* products;
  const int64_t count, num_rows, block_rows;
  std::vector<Layout> layouts;
  Unit* units;  // of a block's rows, for each product
  Row* kept;    // [count, block_rows]

  void lay_out() {
    thread_local std::vector<Unit> all_units;
    thread_local std::vector<Row> all_kept;
    layouts.resize(count);
    int64_t size = 0;
    for (int64_t i = 0; i < count; ++i) {
      Layout& layout = layouts[i];
      layout.units = (products[i].inputs + Kind::INPUTS - 1) / Kind::INPUTS;
      layout.stride = layout.units + 16;  // no power of two: rows would compete for the same lines of the cache
      layout.first_unit = size;
      layout.panels = (products[i].outputs + PANEL - 1) / PANEL;
      size += block_rows * layout.stride;
    }
    all_units.resize(size);
    all_kept.resize(count * block_rows);
    units = all_units.data();
    kept = all_kept.data();
  }

  // Groups of so many panels, numbered through all products. Returns how many there are.
  int64_t number_groups(int64_t panels) {
    int64_t num_groups = 0;
    for (Layout& layout : layouts) {
      layout.first_group = num_groups;
      num_groups += (layout.panels + panels - 1) / panels;
    }
    return num_groups;
  }

  // Rows that are prepared in one thread, as waking another one would take longer: so many inputs of all products.
  static constexpr int64_t INPUTS_TO_SHARE = 1 << 15;

  void prepare(const Block& block) {
    int64_t inputs = 0;
    for (int64_t i = 0; i < count; ++i) inputs += products[i].inputs;
    const int64_t chunk = std::max<int64_t>(1, INPUTS_TO_SHARE * count / inputs);
    const auto prepare_tile = [&](int64_t tile) { prepare_row(block, tile / block.rows, tile % block.rows); };
    for_each_even_tile(count * block.rows, prepare_tile, chunk);
  }

  void prepare_row(const Block& block, int64_t i, int64_t row) {
    const T* x = (const T*)products[i].x + (block.first_row + row) * products[i].inputs;
    kept[i * block_rows + row] = Form::prepare(products[i], x, units + layouts[i].first_unit + row * layouts[i].stride);
  }

  // All rows of the block times the panels of one group.
  void run_group(const Block& block, int64_t group, float* buffer) {
    int64_t i = 0;
    while (i + 1 < count && group >= layouts[i + 1].first_group) ++i;
    const Layout& layout = layouts[i];
    const int64_t panel = (group - layout.first_group) * block.panels;
    const int64_t panels = std::min(block.panels, layout.panels - panel);
    const int64_t w_stride = layout.units * PANEL, sums_stride = block.rows * PANEL;
    const auto* weight = (const typename Kind::Weight*)products[i].weight + panel * w_stride;
    float *const sums = buffer, *const decoded = buffer + block.panels * sums_stride;
    constexpr bool IS_PACKED = !std::is_same<typename Decoded::Weight, typename Kind::Weight>::value;
    const bool decodes = IS_PACKED && block.tiles >= TILES_TO_DECODE;
    const int64_t depth = block.tiles == 1 ? layout.units : BLOCK_UNITS;
    for (int64_t k = 0; k < layout.units; k += depth) {
      const int64_t block_length = std::min(depth, layout.units - k);
      if (decodes) decode<Kind>(weight + k * PANEL, block_length, decoded);
      for (int64_t t = 0, row = 0; t < block.tiles; ++t) {
        const int64_t size = block.rows / block.tiles + (t < block.rows % block.tiles);
        const Unit* x = units + layout.first_unit + row * layout.stride + k;
        if (decodes) {
          prefetch_lines(weight + (k + block_length) * PANEL, t, block.tiles);
          multiply_tile<Decoded, true>(size, 1, x, layout.stride, (const typename Decoded::Weight*)decoded, 0,
                                       block_length, sums + row * PANEL, sums_stride, k == 0);
        } else {
          multiply_tile<Kind, false>(size, panels, x, layout.stride, weight + k * PANEL, w_stride, block_length,
                                     sums + row * PANEL, sums_stride, k == 0);
        }
        row += size;
      }
    }
    for (int64_t p = 0; p < panels; ++p)
      finish<T, Form>(products[i], block.first_row, block.rows, (panel + p) * PANEL, sums + p * sums_stride,
                      kept + i * block_rows);
  }
};

// Multiplies M rows with each of `count` weights.
template <typename T, typename Form>
static void multiply(const Products& p) {
  Multiplication<T, Form>(p.products, p.count, p.rows).run();
}
