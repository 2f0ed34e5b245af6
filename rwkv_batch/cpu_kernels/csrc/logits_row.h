// One row of logits, with the largest logit and the mass of each tile.
#pragma once
#include <algorithm>
#include <vector>

#include "lanes.h"

class LogitsRow {
 public:
  const float* x = nullptr;  // [V]
  int64_t vocab = 0, tiles = 0;
  std::vector<float> tile_max;
  std::vector<float> shares;  // sum of e^(logit - peak) of each tile
  float peak = 0;
  double total = 0;  // of all shares; NaN where a logit is

  void read(const float* logits, int64_t size) {
    start(logits, size);
    tile_mass.resize(tiles);
    shares.resize(tiles);
    for (int64_t first = 0; first < tiles; first += BLOCK) {
      const int64_t end = std::min(first + BLOCK, tiles);
      for (int64_t t = first; t < end; ++t) find_max(t);
      for (int64_t t = first; t < end; ++t) {
        prefetch(t + BLOCK);
        find_mass(t);
      }
    }
    finish();
  }

  // Only `tile_max`.
  void read_maxima(const float* logits, int64_t size) {
    start(logits, size);
    for (int64_t t = 0; t < tiles; ++t) find_max(t);
  }

  // Computes a tile's numbers again after its logits have changed. `finish` must follow.
  void refresh(int64_t t) {
    if (t == tiles - 1) pad();
    find_max(t);
    find_mass(t);
  }

  void finish() {
    peak = *std::max_element(tile_max.begin(), tile_max.end());
    int64_t t = 0;
    for (; t + WIDTH <= tiles; t += WIDTH) {
      Floats share[1] = {(larger(load(&tile_max[t]), splat(-FLT_MAX)) - peak) * LOG2_E};
      exp2_of(share);
      store(&shares[t], load(&tile_mass[t]) * share[0]);
    }
    for (; t < tiles; ++t) shares[t] = tile_mass[t] * exp2_of(std::max(tile_max[t], -FLT_MAX), peak, LOG2_E);
    total = 0;
    for (const float share : shares) total += share;
  }

  // TILE logits; those beyond the vocabulary are -inf.
  const float* tile(int64_t t) const { return (t + 1) * TILE <= vocab ? x + t * TILE : last_tile; }

  double log_normalizer() const { return peak + std::log(total); }

  // No token can be sampled: all logits are -inf, or one is NaN or +inf.
  bool is_empty() const { return !std::isfinite(peak) || std::isnan(total); }

  // The first token with the largest logit.
  int64_t most_likely() const {
    const int64_t t = std::find(tile_max.begin(), tile_max.end() - 1, peak) - tile_max.begin();
    return t * TILE + (std::find(tile(t), tile(t) + TILE - 1, peak) - tile(t));
  }

 private:
  static constexpr int64_t BLOCK = 16;  // tiles whose two passes follow each other, so that the second reads the cache

  std::vector<float> tile_mass;  // sum of e^(logit - the tile's largest)
  float last_tile[TILE];

  void start(const float* logits, int64_t size) {
    x = logits;
    vocab = size;
    tiles = (size + TILE - 1) / TILE;
    tile_max.resize(tiles);
    pad();
  }

  void pad() {
    for (int64_t i = 0, id = (tiles - 1) * TILE; i < TILE; ++i, ++id) last_tile[i] = id < vocab ? x[id] : -INFINITY;
  }

  // Prefetches a tile. Processors do not prefetch across the end of a page.
  void prefetch(int64_t t) const {
    for (int i = 0; i < TILE; i += 16) __builtin_prefetch(x + std::min(t * TILE + i, vocab - 1));
  }

  void find_max(int64_t t) {
    const float* logits = tile(t);
    Floats best = splat(-INFINITY);
    for (int i = 0; i < TILE; i += WIDTH) best = larger(load(logits + i), best);
    tile_max[t] = largest(best);
  }

  void find_mass(int64_t t) { tile_mass[t] = mass_of(tile(t), std::max(tile_max[t], -FLT_MAX), LOG2_E); }
};
