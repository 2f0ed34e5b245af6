// One token for each row: temperature, top-k, top-p, min-p, without sorting or drawing over the whole vocabulary.
// The definition is in engine/selection.py. Every filter keeps a prefix of the order "logit down, id up", so only the
// tokens above a threshold are gathered and sorted; the threshold goes down until every cut is known to lie above it.
#include <algorithm>
#include <vector>

#include "common.h"

struct Select {
  int64_t num_rows, vocab;
  const float* logits;  // [B, V]
  const float *temperature, *filter_temperature;
  const double *top_p, *min_p, *uniform;
  const int64_t* top_k;  // KEEP_ALL where it is off
  const bool *greedy, *untempered;
  const double* normalizer;  // log sum exp of each row, or null
  int64_t* token_ids;
};

struct Normalize {
  int64_t num_rows, vocab;
  const float* logits;
  double* out;
};

constexpr int TILE = 64;
constexpr int64_t KEEP_ALL = (int64_t)1 << 62;
constexpr int LANES = 16;

static inline float largest(const float* x, int n) {
  float best[LANES];
  for (int j = 0; j < LANES; ++j) best[j] = -INFINITY;
  int i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int j = 0; j < LANES; ++j) best[j] = x[i + j] > best[j] ? x[i + j] : best[j];
  for (; i < n; ++i) best[0] = x[i] > best[0] ? x[i] : best[0];
  for (int j = 1; j < LANES; ++j) best[0] = best[j] > best[0] ? best[j] : best[0];
  return best[0];
}

static inline float mass_of(const float* x, int n, float peak, float scale) {
  float sum[LANES] = {};
  int i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int j = 0; j < LANES; ++j) sum[j] += fast_exp((x[i + j] - peak) * scale);
  for (int j = 0; j < LANES && i + j < n; ++j) sum[j] += fast_exp((x[i + j] - peak) * scale);
  for (int j = 1; j < LANES; ++j) sum[0] += sum[j];
  return sum[0];
}

static inline int width_at(int64_t tile, int64_t vocab) { return (int)std::min<int64_t>(TILE, vocab - tile * TILE); }

struct Candidate {
  float value;
  int32_t id;
};

// What one thread reuses from row to row.
struct Scratch {
  std::vector<float> tile_max;
  std::vector<double> cumulative;
  std::vector<Candidate> candidates;
};

static int64_t draw_from_all(const Select& p, int64_t row, const float* x, float peak, Scratch& s) {
  const int64_t tiles = (int64_t)s.tile_max.size();
  const float scale = 1.0f / p.temperature[row];
  s.cumulative.resize(tiles);
  double total = 0;
  for (int64_t tile = 0; tile < tiles; ++tile)
    s.cumulative[tile] = total += mass_of(x + tile * TILE, width_at(tile, p.vocab), peak, scale);
  const double target = p.uniform[row] * total;
  int64_t tile = std::upper_bound(s.cumulative.begin(), s.cumulative.end(), target) - s.cumulative.begin();
  tile = std::min(tile, tiles - 1);
  double sum = tile ? s.cumulative[tile - 1] : 0.0;
  int64_t last = tile * TILE;
  for (int i = 0; i < width_at(tile, p.vocab); ++i) {
    const double mass = fast_exp((x[tile * TILE + i] - peak) * scale);
    if (x[tile * TILE + i] > -INFINITY) last = tile * TILE + i;
    sum += mass;
    if (sum > target && x[tile * TILE + i] > -INFINITY) break;
  }
  return last;
}

static void gather(const Select& p, const float* x, float threshold, Scratch& s) {
  s.candidates.clear();
  for (int64_t tile = 0; tile < (int64_t)s.tile_max.size(); ++tile) {
    if (!(s.tile_max[tile] >= threshold)) continue;
    const int width = width_at(tile, p.vocab);
    for (int i = 0; i < width; ++i) {
      const float value = x[tile * TILE + i];
      if (value >= threshold) s.candidates.push_back({value, (int32_t)(tile * TILE + i)});
    }
  }
}

static int64_t draw_filtered(const Select& p, int64_t row, const float* x, float peak, Scratch& s) {
  const double top_p = p.top_p[row], min_p = p.min_p[row], filter = p.filter_temperature[row];
  const bool cuts = p.top_k[row] < p.vocab || min_p > 0;
  double total = INFINITY;
  if (top_p < 1) {
    if (p.normalizer && filter == 1) {
      total = std::exp(p.normalizer[row] - peak);
    } else {
      total = 0;
      for (int64_t tile = 0; tile < (int64_t)s.tile_max.size(); ++tile)
        total += mass_of(x + tile * TILE, width_at(tile, p.vocab), peak, (float)(1 / filter));
    }
  }
  for (double reach = 4;; reach *= 2) {
    const bool is_all = reach > 1e4;
    const float threshold = is_all ? -INFINITY : (float)(peak - reach * filter);
    gather(p, x, threshold, s);
    const int64_t count = (int64_t)s.candidates.size();
    auto& c = s.candidates;
    std::sort(c.begin(), c.end(), [](const Candidate& a, const Candidate& b) {
      return a.value != b.value ? a.value > b.value : a.id < b.id;
    });
    s.cumulative.resize(count);
    double sum = 0;
    int64_t by_min_p = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double mass = std::exp((double)(c[i].value - peak) / filter);
      by_min_p += mass >= min_p;
      s.cumulative[i] = sum += mass;
    }
    int64_t keep = std::min(std::min(by_min_p, p.top_k[row]), count);
    const bool is_cut = is_all || by_min_p < count || p.top_k[row] <= count;
    if (cuts && !is_cut && !p.untempered[row]) continue;
    bool is_complete = is_cut;
    if (top_p < 1) {
      const double reference = cuts && !p.untempered[row] ? s.cumulative[keep - 1] : total;
      int64_t first = std::lower_bound(s.cumulative.begin(), s.cumulative.end(), top_p * reference) - s.cumulative.begin();
      if (first < count) {
        const float cutoff = c[first].value;
        while (first < count && c[first].value >= cutoff) ++first;  // ties are kept
        is_complete = true;
        keep = std::min(keep, first);
      }
    }
    if (!is_complete) continue;
    sum = 0;
    for (int64_t i = 0; i < keep; ++i)
      s.cumulative[i] = sum += std::exp((double)(c[i].value - peak) / p.temperature[row]);
    const auto end = s.cumulative.begin() + keep;
    const int64_t rank = std::upper_bound(s.cumulative.begin(), end, p.uniform[row] * sum) - s.cumulative.begin();
    return c[std::min(rank, keep - 1)].id;
  }
}

static int64_t select_one(const Select& p, int64_t row, Scratch& s) {
  const float* x = p.logits + row * p.vocab;
  s.tile_max.resize((p.vocab + TILE - 1) / TILE);
  for (int64_t tile = 0; tile < (int64_t)s.tile_max.size(); ++tile)
    s.tile_max[tile] = largest(x + tile * TILE, width_at(tile, p.vocab));
  const int64_t best = std::max_element(s.tile_max.begin(), s.tile_max.end()) - s.tile_max.begin();
  const float peak = s.tile_max[best];
  const float* first = x + best * TILE;
  const int64_t greedy = std::find(first, first + width_at(best, p.vocab) - 1, peak) - x;
  if (p.greedy[row] || !(peak > -INFINITY)) return greedy;
  if (p.top_p[row] >= 1 && p.top_k[row] == KEEP_ALL && p.min_p[row] <= 0) return draw_from_all(p, row, x, peak, s);
  return draw_filtered(p, row, x, peak, s);
}

extern "C" void select_tokens(const Select* p) {
#pragma omp parallel
  {
    Scratch scratch;
#pragma omp for schedule(dynamic, 1)
    for (int64_t row = 0; row < p->num_rows; ++row) p->token_ids[row] = select_one(*p, row, scratch);
  }
}

extern "C" void log_normalizer(const Normalize* p) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < p->num_rows; ++row) {
    const float* x = p->logits + row * p->vocab;
    const float peak = largest(x, (int)p->vocab);
    double total = 0;
    for (int64_t start = 0; start < p->vocab; start += TILE)
      total += mass_of(x + start, width_at(start / TILE, p->vocab), peak, 1.0f);
    p->out[row] = peak + std::log(total);
  }
}
