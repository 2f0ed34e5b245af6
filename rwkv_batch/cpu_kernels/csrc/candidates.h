// The tokens of a row whose logits lie in a range, and where among them a prefix of the order "logit down, id up" ends.
#pragma once
#include <algorithm>
#include <numeric>
#include <vector>

#include "logits_row.h"

constexpr int64_t LAST = INT64_MAX;

// The end of a prefix. It keeps the tokens with a logit above `value`, and of those with `value` the ids to `last_id`.
struct Cut {
  float value;
  int64_t last_id;
  double count, mass;  // of the prefix

  bool keeps(float logit, int64_t id) const { return logit > value || (logit == value && id <= last_id); }

  bool is_before(const Cut& other) const {
    return value > other.value || (value == other.value && last_id < other.last_id);
  }
};

struct Range {
  float low, high;  // low <= logit < high
};

struct Amount {
  double count, mass;

  bool is_reached(double count_so_far, double mass_so_far) const {
    return count_so_far >= count && mass_so_far >= mass;
  }
};

class Candidates {
 public:
  Range range;
  int64_t size = 0;
  double count_above, mass_above;  // of the tokens above the range
  double mass;                     // of the candidates

  // Collects the tokens of a range. A mass is relative to the most likely token: 2^((logit - peak) * rate).
  void collect(const LogitsRow& row, Range wanted, float rate) {
    range = wanted;
    size = 0;
    count_above = mass_above = 0;
    above.assign(row.tiles, 0.0f);
    const size_t room = row.tiles * TILE;
    if (values.size() < room) {
      values.resize(room);
      ids.resize(room);
      masses.resize(room);
      bin_ids.resize(room);
    }
    for (int64_t t = 0; t < row.tiles; ++t) {
      if (!(row.tile_max[t] >= range.low)) continue;
      const float* x = row.tile(t);
      uint64_t bits = at_least(x, range.low);
      if (row.tile_max[t] >= range.high) {
        const uint64_t larger = at_least(x, range.high);
        bits &= ~larger;
        count_above += __builtin_popcountll(larger);
        mass_above += above[t] = mass_of<true>(x, row.peak, rate, range.high);
      }
      for (; bits; bits &= bits - 1) {
        const int i = __builtin_ctzll(bits);
        values[size] = x[i];
        ids[size++] = (int32_t)(t * TILE + i);
      }
    }
    weigh(row.peak, rate);
    spread();
    mass = std::accumulate(bin_masses, bin_masses + BINS, 0.0);
  }

  // Computes all masses again, for another temperature.
  void weigh_again(const LogitsRow& row, float rate) {
    for (int64_t t = 0; t < row.tiles; ++t)
      if (above[t] > 0) above[t] = mass_of<true>(row.tile(t), row.peak, rate, range.high);
    weigh(row.peak, rate);
  }

  // Adds up, for each tile, the masses of the tokens that the cut keeps. The cut lies in the range.
  void sum_before(const Cut& cut, std::vector<double>& sums) const {
    sums.assign(above.begin(), above.end());
    for (int64_t i = 0; i < size; i += WIDTH) {
      Ints id;
      std::memcpy(&id, &ids[i], sizeof id);
      const Floats value = load(&values[i]);
      const Ints is_tie =
          (Ints)(value == splat(cut.value)) & (id <= (int32_t)std::min<int64_t>(cut.last_id, INT32_MAX));
      const Floats mass = (Floats)((Ints)load(&masses[i]) & ((Ints)(value > cut.value) | is_tie));
      const int count = (int)std::min<int64_t>(WIDTH, size - i);
      for (int j = 0; j < count; ++j) sums[id[j] / TILE] += mass[j];
    }
  }

  // The cut lies where `sum_before` can tell which tokens it keeps.
  bool covers(const Cut& cut) const {
    return cut.value >= range.low && (cut.value < range.high || (cut.value == range.high && cut.last_id == LAST));
  }

  void clear() { range = {INFINITY, -INFINITY}; }

  bool holds(const Amount& amount) const {
    return !amount.is_reached(count_above, mass_above) && amount.is_reached(count_above + size, mass_above + mass);
  }

  // The shortest prefix of at least one token with `amount`; all the candidates where there is none.
  Cut prefix(const Amount& amount) {
    Cut cut{range.high, LAST, count_above, mass_above};
    int last = BINS - 1;  // the bin in which the amount is reached
    for (; last > 0 && !amount.is_reached(cut.count + counts[last], cut.mass + bin_masses[last]); --last) {
      cut.count += counts[last];
      cut.mass += bin_masses[last];
    }
    bin.clear();
    for (int64_t i = 0; i < size; ++i)
      if (bin_ids[i] == last) bin.push_back((int32_t)i);
    const auto is_before = [this](int32_t a, int32_t b) {
      return values[a] != values[b] ? values[a] > values[b] : ids[a] < ids[b];
    };
    if (!std::is_sorted(bin.begin(), bin.end(), is_before)) std::sort(bin.begin(), bin.end(), is_before);
    for (const int32_t i : bin) {
      cut.value = values[i];
      cut.last_id = ids[i];
      ++cut.count;
      cut.mass += masses[i];
      if (amount.is_reached(cut.count, cut.mass)) break;
    }
    return cut;
  }

  // The prefix of all tokens whose mass is at least `least`.
  Cut heavier_than(double least) const {
    Cut cut{range.high, LAST, count_above, mass_above};
    for (int64_t i = 0; i < size; ++i)
      if (masses[i] >= least) {
        cut.value = std::min(cut.value, values[i]);
        ++cut.count;
        cut.mass += masses[i];
      }
    return cut;
  }

 private:
  static constexpr int BINS = 256;

  std::vector<float> values, masses, above;
  std::vector<int32_t> ids, bin_ids, bin;
  int32_t counts[BINS];
  double bin_masses[BINS];

  void weigh(float peak, float rate) {
    for (int64_t i = 0; i < size; i += WIDTH) {
      Floats mass[1] = {(load(&values[i]) - peak) * rate};
      exp2_of(mass);
      store(&masses[i], mass[0]);
    }
  }

  // Counts and weighs the tokens in bins of equal width, so that `prefix` sorts one bin only.
  void spread() {
    const int64_t padded = (size + WIDTH - 1) / WIDTH * WIDTH;
    std::fill(values.data() + size, values.data() + padded, values[0]);
    Floats least = splat(INFINITY), most = splat(-INFINITY);
    for (int64_t i = 0; i < padded; i += WIDTH) {
      least = -larger(-load(&values[i]), -least);
      most = larger(load(&values[i]), most);
    }
    const float low = -largest(-least), width = largest(most) - low;
    const float bins_per_unit = size && width > 0 ? (BINS - 1) / width : 0.0f;
    for (int64_t i = 0; i < padded; i += WIDTH) {
      // An infinite width, or an infinite inverse of it, makes some products NaN: these go to bin 0.
      const Floats place = larger((load(&values[i]) - low) * bins_per_unit, Floats{});
      const Ints bin_of = __builtin_convertvector(-larger(-place, splat(1.0f - BINS)), Ints);
      std::memcpy(&bin_ids[i], &bin_of, sizeof bin_of);
    }
    std::fill_n(counts, BINS, 0);
    std::fill_n(bin_masses, BINS, 0.0);
    for (int64_t i = 0; i < size; ++i) {
      ++counts[bin_ids[i]];
      bin_masses[bin_ids[i]] += masses[i];
    }
  }
};
