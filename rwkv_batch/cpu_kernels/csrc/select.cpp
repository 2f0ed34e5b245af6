// One token for each row: temperature, top-k, top-p, min-p, without sorting or drawing over the whole vocabulary.
// The definition is in engine/selection.py. Every filter keeps a prefix of the order "logit down, id up", so only the
// tokens above a threshold are gathered; the threshold goes down until every cut is known to lie above it. Bins tell
// in which narrow range of logits a cut lies, and only that range is sorted.
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
  const double* normalizer;  // log sum exp of each row, or NaN for some, or null
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

constexpr int BINS = 256;

struct Candidate {
  float value;
  int32_t id;
  double mass;  // relative to the most likely token, at the filters' temperature
};

// Where a prefix of the order "logit down, id up" ends: after `ties` of the tokens whose logit is `value`.
struct Cut {
  float value;
  int64_t ties, count;
  double mass;
};

// The tokens above a threshold, in order of id, and how they spread over bins of equal width.
struct Candidates {
  std::vector<Candidate> all;
  std::vector<Candidate> bin;
  int64_t counts[BINS];
  double masses[BINS];
  float low, scale;

  int bin_of(float value) const {
    const float at = (value - low) * scale;
    return at > 0 ? std::min((int)at, BINS - 1) : 0;
  }

  void spread(float peak) {
    low = peak;
    for (const auto& c : all) low = c.value < low && c.value > -INFINITY ? c.value : low;
    scale = peak > low ? (BINS - 1) / (peak - low) : 0.0f;
    std::fill_n(counts, BINS, 0);
    std::fill_n(masses, BINS, 0.0);
    for (const auto& c : all) {
      const int at = bin_of(c.value);
      ++counts[at];
      masses[at] += c.mass;
    }
  }

  // The shortest prefix of at least `count` tokens and at least `mass`; all of them where there is none.
  Cut prefix(int64_t count, double mass) {
    Cut cut{-INFINITY, 0, 0, 0.0};
    int at = BINS - 1;
    for (; at > 0 && !(cut.count + counts[at] >= count && cut.mass + masses[at] >= mass); --at) {
      cut.count += counts[at];
      cut.mass += masses[at];
    }
    bin.clear();
    for (const auto& c : all)
      if (bin_of(c.value) == at) bin.push_back(c);
    std::sort(bin.begin(), bin.end(), [](const Candidate& a, const Candidate& b) {
      return a.value != b.value ? a.value > b.value : a.id < b.id;
    });
    for (const auto& c : bin) {
      cut.ties = c.value == cut.value ? cut.ties + 1 : 1;
      cut.value = c.value;
      ++cut.count;
      cut.mass += c.mass;
      if (cut.count >= count && cut.mass >= mass) break;
    }
    return cut;
  }
};

// What one thread reuses from row to row.
struct Scratch {
  std::vector<float> tile_max;
  std::vector<double> cumulative;
  Candidates candidates;
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

static void gather(const Select& p, const float* x, float threshold, float peak, double temperature, Scratch& s) {
  auto& all = s.candidates.all;
  all.clear();
  const float scale = (float)(1 / temperature);
  for (int64_t tile = 0; tile < (int64_t)s.tile_max.size(); ++tile) {
    if (!(s.tile_max[tile] >= threshold)) continue;
    const int width = width_at(tile, p.vocab);
    for (int i = 0; i < width; ++i) {
      const float value = x[tile * TILE + i];
      if (value >= threshold) all.push_back({value, (int32_t)(tile * TILE + i), 0.0});
    }
  }
  for (auto& c : all) c.mass = c.value > -INFINITY ? fast_exp((c.value - peak) * scale) : 0.0f;
  s.candidates.spread(peak);
}

static double total_mass(const Select& p, int64_t row, const float* x, float peak) {
  const double filter = p.filter_temperature[row];
  if (p.normalizer && filter == 1 && !std::isnan(p.normalizer[row])) return std::exp(p.normalizer[row] - peak);
  double total = 0;
  for (int64_t start = 0; start < p.vocab; start += TILE)
    total += mass_of(x + start, width_at(start / TILE, p.vocab), peak, (float)(1 / filter));
  return total;
}

// Draw from the candidates before the cut, in order of id.
static int64_t draw_before(const Cut& cut, const Select& p, int64_t row, float peak, Scratch& s) {
  const float scale = 1.0f / p.temperature[row];
  const bool is_same = p.temperature[row] == p.filter_temperature[row];
  double total = 0;
  int64_t ties = cut.ties;
  auto& all = s.candidates.all;
  size_t kept = 0;
  for (const auto& c : all) {
    if (c.value < cut.value || (c.value == cut.value && ties-- <= 0)) continue;
    total += is_same ? c.mass : fast_exp((c.value - peak) * scale);
    all[kept++] = {c.value, c.id, total};
  }
  const double target = p.uniform[row] * total;
  const auto after = [](double limit, const Candidate& c) { return limit < c.mass; };
  const size_t rank = std::upper_bound(all.begin(), all.begin() + kept, target, after) - all.begin();
  return all[std::min(rank, kept - 1)].id;
}

static int64_t draw_filtered(const Select& p, int64_t row, const float* x, float peak, Scratch& s) {
  const double top_p = p.top_p[row], min_p = p.min_p[row], filter = p.filter_temperature[row];
  const bool cuts = p.top_k[row] < p.vocab || min_p > 0, renormalised = cuts && !p.untempered[row];
  const double total = top_p < 1 ? total_mass(p, row, x, peak) : INFINITY;
  for (double reach = 4;; reach *= 2) {
    const bool is_all = reach > 1e4;
    gather(p, x, is_all ? -INFINITY : (float)(peak - reach * filter), peak, filter, s);
    const int64_t count = (int64_t)s.candidates.all.size();
    int64_t by_min_p = 0;
    for (const auto& c : s.candidates.all) by_min_p += c.mass >= min_p;
    const bool is_cut = is_all || by_min_p < count || p.top_k[row] <= count;
    if (!is_cut && (renormalised || top_p >= 1)) continue;
    const int64_t keep = std::min(std::min(by_min_p, p.top_k[row]), count);
    const Cut by_count = s.candidates.prefix(keep, 0.0);
    if (top_p >= 1) return draw_before(by_count, p, row, peak, s);
    Cut nucleus = s.candidates.prefix(1, top_p * (renormalised ? by_count.mass : total));
    const bool is_reached = nucleus.mass >= top_p * (renormalised ? by_count.mass : total);
    if (!is_reached && !is_cut) continue;
    nucleus.ties = p.vocab;  // all ties with the last token of the nucleus are kept
    const bool nucleus_is_shorter =
        is_reached && (nucleus.value > by_count.value || (nucleus.value == by_count.value && !cuts));
    return draw_before(nucleus_is_shorter ? nucleus : by_count, p, row, peak, s);
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
  if (!std::isfinite(peak)) return 0;
  if (p.greedy[row]) return greedy;
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
