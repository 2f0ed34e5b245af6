// One token of one row: temperature, top-k, top-p, min-p, without sorting or listing the vocabulary.
// The definition is in engine/selection.py. Every filter keeps a prefix of the order "logit down, id up". Its end is
// searched in three places, one after the other: among a few hundred tokens with the largest logits (`top`); in a
// narrow range of logits that a sample of the row predicts (`band`); and, where the prediction was wrong, in the whole
// row.
#pragma once
#include "candidates.h"

constexpr int64_t KEEP_ALL = (int64_t)1 << 62;

// The settings that shape a row's distribution; `Filters` in engine/selection.py.
struct Filter {
  float temperature, filter_temperature;
  double top_p, min_p;
  int64_t top_k;
  bool greedy, untempered;

  bool is_off() const { return top_p >= 1 && top_k == KEEP_ALL && min_p <= 0; }
};

class Selector {
 public:
  int64_t select(const LogitsRow& given, const Filter& filter, double uniform) {
    row = &given;
    if (row->is_empty()) return 0;
    if (filter.greedy) return row->most_likely();
    rate = LOG2_E / filter.filter_temperature;
    const float draw_rate = LOG2_E / filter.temperature;
    const Cut keep = filter.is_off() ? everything : find_cut(filter);
    if (keep.value == everything.value) {
      weigh_tiles(draw_rate);
    } else {
      Candidates& around = top.covers(keep) ? top : band;
      if (!around.covers(keep)) around.collect(*row, {keep.value, after(keep.value)}, rate);
      if (draw_rate != rate) around.weigh_again(*row, draw_rate);
      around.sum_before(keep, sums);
    }
    return draw(keep, draw_rate, uniform);
  }

 private:
  static constexpr Range whole = {-FLT_MAX, INFINITY};
  static constexpr Cut everything = {-FLT_MAX, LAST, INFINITY, INFINITY};
  static constexpr int64_t GROUP = 4, FEW_GROUPS = 16;  // tiles in a group; fewer groups: all tokens are in `top`
  static constexpr int64_t MANY = 192;                  // tokens that `top` has at least, if top-k is off
  static constexpr int BINS = 512;
  static constexpr int64_t SPARSENESS = 16;  // one token in so many is in the sample
  static constexpr double DEVIATIONS = 3;    // standard errors that the sample's estimate is trusted up to
  static constexpr double UNSEEN = 9;        // see guess

  const LogitsRow* row = nullptr;
  float rate = 0;    // e^(logit / the filters' temperature) = 2^(logit * rate)
  double total = 0;  // mass of the row at that temperature; 0 until total_mass is called
  Candidates top, band;
  std::vector<float> group_max;
  std::vector<double> sums;  // of the masses in each tile
  std::vector<float> sample;
  float bins[BINS];  // weights of a sample

  Cut find_cut(const Filter& filter) {
    const bool cuts = filter.top_k < row->vocab || filter.min_p > 0;
    const bool renormalised = cuts && !filter.untempered;
    total = 0;
    band.clear();
    top.collect(*row, {limit_of(std::min(filter.top_k, MANY)), INFINITY}, rate);
    Cut keep = everything;
    if (filter.top_k < row->vocab) keep = shorter(keep, prefix({(double)filter.top_k, 0}, keep));
    if (filter.min_p > 0) keep = shorter(keep, heavier_than(std::min(filter.min_p, 1.0), keep));
    if (filter.top_p >= 1) return keep;
    const double reference = renormalised && std::isfinite(keep.mass) ? keep.mass : total_mass();
    Cut nucleus = prefix({1, filter.top_p * reference}, keep);
    nucleus.last_id = LAST;  // all ties with its last token are kept
    return shorter(keep, nucleus);
  }

  static Cut shorter(const Cut& keep, const Cut& other) { return other.is_before(keep) ? other : keep; }

  // A logit that at least `count` tokens reach, and hardly more: the `count`-th largest of the groups' largest logits.
  // A few groups have more than one token from this logit up.
  float limit_of(int64_t count) {
    const int64_t groups = (row->tiles + GROUP - 1) / GROUP;
    count = std::min(count, groups * 3 / 4);
    if (groups < FEW_GROUPS) return whole.low;
    group_max.assign(groups, -INFINITY);
    for (int64_t t = 0; t < row->tiles; ++t) group_max[t / GROUP] = std::max(group_max[t / GROUP], row->tile_max[t]);
    std::nth_element(group_max.begin(), group_max.begin() + (count - 1), group_max.end(), std::greater<float>());
    return std::max(group_max[count - 1], whole.low);
  }

  double total_mass() {
    if (rate == LOG2_E) return row->total;
    if (total == 0) {
      weigh_tiles(rate);
      total = std::accumulate(sums.begin(), sums.end(), 0.0);
    }
    return total;
  }

  void weigh_tiles(float at_rate) {
    sums.assign(row->shares.begin(), row->shares.end());
    for (int64_t t = 0; at_rate != LOG2_E && t < row->tiles; ++t) sums[t] = mass_of(row->tile(t), row->peak, at_rate);
  }

  // The shortest prefix with `amount`; any longer one than `keep` stands for all that are longer.
  Cut prefix(const Amount& amount, const Cut& keep) {
    if (top.holds(amount)) return top.prefix(amount);
    if (top.range.low <= whole.low || top.covers(keep)) return everything;
    band.collect(*row, guess(amount), rate);
    if (band.holds(amount)) return band.prefix(amount);
    band.collect(*row, whole, rate);
    return band.holds(amount) ? band.prefix(amount) : everything;
  }

  // The prefix of tokens whose mass is at least `least`; any longer one than `keep` stands for all that are longer.
  Cut heavier_than(double least, const Cut& keep) {
    const float limit = (float)(row->peak + std::log2(least) / rate);
    const float slack = 1e-3f / rate + 1e-5f * std::abs(limit);
    if (limit - slack >= top.range.low || top.range.low <= whole.low) return top.heavier_than(least);
    if (top.covers(keep) && limit + slack < top.range.low) return everything;
    band.collect(*row, {std::max(limit - slack, whole.low), limit + slack}, rate);
    return band.heavier_than(least);
  }

  // The range of logits in which the prefix with `amount` ends, estimated from a sample of the tokens below `top`.
  //
  // Sampled token i has the weight w_i: its mass, or 1 where tokens are counted. Let W be the sum of all w_i, A the sum
  // of those above a boundary between bins, and s = A / W. With F, the weight of all tokens over W, F A estimates the
  // weight above the boundary. To first order the error of s is (1 / W) sum_i (a_i - s) w_i, where a_i is 1 above the
  // boundary and 0 below, and the terms are nearly independent. The variance of F A is thus about F^2 times
  //   sum_i (a_i - s)^2 w_i^2 = (1 - s)^2 Q_above + s^2 (Q - Q_above),   Q = sum_i w_i^2.
  // The tokens of a bin have about the same weight, that of the bin's upper end: the bin adds to Q its sum of w_i times
  // this weight. The estimate is trusted within DEVIATIONS standard errors. Above the first sampled token the variance
  // is 0, but UNSEEN F times the largest weight may have been missed: tokens with that weight in all have UNSEEN of
  // themselves in the sample on average, and none with a probability of e^-UNSEEN.
  // From the top down, `range.high` is the last boundary above which there is certainly too little, `range.low` the
  // first above which there is enough. The answer may be wrong: `prefix` notices, and collects the whole row.
  Range guess(const Amount& amount) {
    const bool by_mass = amount.mass > 0;
    const float high = top.range.low, low = fill_bins(by_mass), width = (high - low) / BINS;
    const double heaviest = by_mass ? exp2_of(high, row->peak, rate) : 1.0;
    const double ratio = by_mass ? std::exp2(-width * rate) : 1.0;
    double weights = 0, squares = 0, weight = heaviest;  // `weight`: of one token in a bin
    for (int bin = BINS - 1; bin >= 0; --bin, weight *= ratio) {
      weights += bins[bin];
      squares += bins[bin] * weight;
    }
    const double needed = by_mass ? amount.mass - top.mass : amount.count - top.size;
    const double factor = by_mass ? (total_mass() - top.mass) / weights : (double)SPARSENESS;
    const double unseen = UNSEEN * factor * heaviest;
    Range range = {whole.low, high};
    double above = 0, squares_above = 0;
    weight = heaviest;
    for (int bin = BINS - 1; bin >= 0; --bin, weight *= ratio) {
      above += bins[bin];
      squares_above += bins[bin] * weight;
      const double share = above / weights, rest = 1 - share;
      const double variance = rest * rest * squares_above + share * share * (squares - squares_above);
      const double error = DEVIATIONS * factor * std::sqrt(std::max(variance, 0.0));
      if (factor * above + error + unseen < needed) range.high = low + bin * width;
      if (factor * above - error >= needed) {
        range.low = low + bin * width;
        break;
      }
    }
    return range;
  }

  // Sums the weights of every SPARSENESS-th token below `top` in bins of equal width. Returns the lower end of bin 0.
  float fill_bins(bool by_mass) {
    sample.clear();
    for (int64_t t = 0; t < row->tiles; t += SPARSENESS * WIDTH / TILE)
      sample.insert(sample.end(), row->tile(t), row->tile(t) + WIDTH);
    const float high = top.range.low, lowest = high - 30 * LOG2_E / rate;
    Floats least = splat(high);
    for (size_t i = 0; i < sample.size(); i += WIDTH) least = -larger(-load(&sample[i]), -least);
    const float low = std::max(-largest(-least), lowest), bins_per_unit = high > low ? BINS / (high - low) : 0.0f;
    std::fill_n(bins, BINS, 0.0f);
    for (size_t i = 0; i < sample.size(); i += WIDTH) {
      const Floats x = load(&sample[i]);
      Floats weight[1] = {(x - row->peak) * rate};
      exp2_of(weight);
      weight[0] = x < high ? (by_mass ? weight[0] : splat(1.0f)) : Floats{};
      const Floats place = -larger(-(larger(x - low, Floats{}) * bins_per_unit), splat(1.0f - BINS));
      const Ints bin = __builtin_convertvector(place, Ints);
      for (int j = 0; j < WIDTH; ++j) bins[bin[j]] += weight[0][j];
    }
    return low;
  }

  // Draws a tile by the masses in `sums`, then a token of this tile that the cut keeps.
  int64_t draw(const Cut& keep, float draw_rate, double uniform) {
    std::partial_sum(sums.begin(), sums.end(), sums.begin());
    const double target = uniform * sums.back();
    const int64_t found = std::upper_bound(sums.begin(), sums.end(), target) - sums.begin();
    const int64_t t = std::min(found, row->tiles - 1);
    double reached = t ? sums[t - 1] : 0.0;
    int64_t id = 0;
    const float* x = row->tile(t);
    for (int i = 0; i < TILE && reached <= target; ++i) {
      if (!keep.keeps(x[i], t * TILE + i)) continue;
      id = t * TILE + i;
      reached += exp2_of(x[i], row->peak, draw_rate);
    }
    return id;
  }

  static float after(float value) { return std::nextafter(value, INFINITY); }
};
