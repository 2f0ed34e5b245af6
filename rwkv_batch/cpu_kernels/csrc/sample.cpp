// One sampling step of rows whose settings and history are in the slot tables. The definition is in engine/sample.py.
#include "parallel.h"
#include "select_row.h"

struct Sample {
  int64_t num_rows, vocab, num_slots;
  float* logits;              // [B, V]
  const int32_t* slot_index;  // [B]
  int64_t* integers;          // [P + 1, NUM_INTEGERS]
  const double* floats;       // [P + 1, NUM_FLOATS]
  int64_t* last_token;        // [P + 1]
  int64_t seen_width, bias_width, stop_width;
  int32_t* seen_ids;  // [P + 1, seen_width], as the next two
  float* seen_count;
  bool* seen_generated;
  const int32_t* bias_ids;  // [P + 1, bias_width], as the next one
  const float* biases;
  const int32_t* stops;  // [P + 1, stop_width]
  const int32_t* mask;   // [P + 1, ceil(V / 32)]
  const int64_t* unsampleable_ids;
  int64_t num_unsampleable;
  const bool* uncounted;  // [V]
  int64_t* token_ids;     // [B]
  double* logprobs;       // [B]
};

// Columns of the tables; a test compares them with engine/slot_tables.py.
enum { TEMPERATURE, TOP_P, MIN_P, PRESENCE, FREQUENCY, REPETITION, DECAY, NUM_FLOATS = 8 };
// clang-format off
enum {
  TOP_K, UNTEMPERED, POSITION, MIN_TOKENS, IS_PENALIZED, SKIPS_UNCOUNTED, NUM_SEEN, NUM_BIASES, NUM_STOPS, IS_MASKED,
  STREAM, NUM_INTEGERS = 16
};
// clang-format on

constexpr float MIN_TEMPERATURE = 1e-6f;

// Philox4x32-10; see engine/philox.py. `stream`: two words of the key, three of the counter.
static double uniform(const int64_t* stream, int64_t position) {
  uint32_t c0 = (uint32_t)position, c1 = (uint32_t)stream[2], c2 = (uint32_t)stream[3], c3 = (uint32_t)stream[4];
  uint32_t k0 = (uint32_t)stream[0], k1 = (uint32_t)stream[1];
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return (double)(((uint64_t)c0 << 21) | (c1 >> 11)) * 0x1p-53;
}

// A product that is rounded to float before it is added to, as in the definition. (float * float is exact in double.)
static float product(float x, float y) { return (float)((double)x * y); }

// Logits of ids whose bit is set; -inf for the others.
static void apply_mask(const int32_t* words, const float* from, float* to, int64_t vocab) {
  Ints lanes;
  for (int j = 0; j < WIDTH; ++j) lanes[j] = 1 << j;
  int64_t id = 0;
  for (; id + WIDTH <= vocab; id += WIDTH) {
    const Ints bits = (Ints{} + (words[id / 32] >> (id % 32))) & lanes;
    store(to + id, bits == lanes ? load(from + id) : splat(-INFINITY));
  }
  for (; id < vocab; ++id) to[id] = (words[id / 32] >> (id % 32)) & 1 ? from[id] : -INFINITY;
}

class Sampler {
 public:
  void sample(const Sample& p, int64_t i) {
    const int64_t slot = p.slot_index[i];
    p.token_ids[i] = 0;
    p.logprobs[i] = 0;
    if (slot < 0) return;
    x = p.logits + i * p.vocab;
    int64_t* integers = p.integers + slot * NUM_INTEGERS;
    row.read(x, p.vocab);
    const double normalizer = row.log_normalizer();
    shape(p, slot);
    rescan_tiles(p, slot);
    const int64_t token = selector.select(row, filter(p, slot), uniform(integers + STREAM, integers[POSITION]));
    restore();
    p.token_ids[i] = p.last_token[slot] = token;
    p.logprobs[i] = x[token] - normalizer;
    ++integers[POSITION];
    if (integers[IS_PENALIZED]) count(p, slot, token);
  }

 private:
  float* x = nullptr;  // [V]
  LogitsRow row;
  Selector selector;
  struct Change {
    int64_t id;
    float old;
  };
  std::vector<Change> changes;
  std::vector<float> masked;
  std::vector<bool> is_fresh;

  static Filter filter(const Sample& p, int64_t slot) {
    const double* floats = p.floats + slot * NUM_FLOATS;
    const int64_t* integers = p.integers + slot * NUM_INTEGERS;
    const bool greedy = (float)floats[TEMPERATURE] < MIN_TEMPERATURE, untempered = integers[UNTEMPERED] > 0;
    const float temperature = greedy ? 1.0f : (float)floats[TEMPERATURE];
    const int64_t top_k = integers[TOP_K] > 0 ? integers[TOP_K] : KEEP_ALL;
    return {temperature, untempered ? 1.0f : temperature, floats[TOP_P], floats[MIN_P], top_k, greedy, untempered};
  }

  void change(int64_t id, float by) {
    changes.push_back({id, x[id]});
    x[id] += by;
  }

  void shape(const Sample& p, int64_t slot) {
    const int64_t* integers = p.integers + slot * NUM_INTEGERS;
    if (integers[IS_PENALIZED]) penalize(p, slot);
    for (int64_t i = 0; i < integers[NUM_BIASES]; ++i)
      change(p.bias_ids[slot * p.bias_width + i], p.biases[slot * p.bias_width + i]);
    const bool is_early = integers[POSITION] < integers[MIN_TOKENS];
    for (int64_t i = 0; is_early && i < integers[NUM_STOPS]; ++i) change(p.stops[slot * p.stop_width + i], -INFINITY);
    for (int64_t i = 0; i < p.num_unsampleable; ++i) {
      changes.push_back({p.unsampleable_ids[i], x[p.unsampleable_ids[i]]});
      x[p.unsampleable_ids[i]] = -INFINITY;
    }
  }

  void penalize(const Sample& p, int64_t slot) {
    const double* floats = p.floats + slot * NUM_FLOATS;
    const float presence = (float)floats[PRESENCE], frequency = (float)floats[FREQUENCY];
    const float repetition = (float)floats[REPETITION];
    const int64_t start = slot * p.seen_width;
    for (int64_t i = start; i < start + p.integers[slot * NUM_INTEGERS + NUM_SEEN]; ++i) {
      const float old = x[p.seen_ids[i]];
      if (!std::isfinite(old)) continue;
      const float repeated = old > 0 ? old / repetition : product(old, repetition);
      const float rest = repeated - product(p.seen_count[i], frequency);
      change(p.seen_ids[i], rest - (p.seen_generated[i] ? presence : 0.0f) - old);
    }
  }

  // Computes the numbers of tiles again whose logits have changed; of the whole row, on a masked copy, where a mask
  // applies.
  void rescan_tiles(const Sample& p, int64_t slot) {
    if (p.integers[slot * NUM_INTEGERS + IS_MASKED]) {
      const int32_t* words = p.mask + slot * ((p.vocab + 31) / 32);
      masked.resize(p.vocab);
      apply_mask(words, x, masked.data(), p.vocab);
      row.read(masked.data(), p.vocab);
    } else if (!changes.empty()) {
      is_fresh.assign(row.tiles, false);
      for (const Change& change : changes) {
        if (is_fresh[change.id / TILE]) continue;
        row.refresh(change.id / TILE);
        is_fresh[change.id / TILE] = true;
      }
      row.finish();
    }
  }

  void restore() {
    for (; !changes.empty(); changes.pop_back()) x[changes.back().id] = changes.back().old;
  }

  // Decay the slot's counts, then count its new token.
  static void count(const Sample& p, int64_t slot, int64_t token) {
    int64_t* integers = p.integers + slot * NUM_INTEGERS;
    const float decay = (float)p.floats[slot * NUM_FLOATS + DECAY];
    int32_t* ids = p.seen_ids + slot * p.seen_width;
    float* counts = p.seen_count + slot * p.seen_width;
    for (int64_t i = 0; i < integers[NUM_SEEN]; ++i) counts[i] *= decay;
    const int64_t entry = std::find(ids, ids + integers[NUM_SEEN], (int32_t)token) - ids;
    const bool is_skipped = integers[SKIPS_UNCOUNTED] && p.uncounted[token];
    if (entry == integers[NUM_SEEN]) {
      ++integers[NUM_SEEN];
      ids[entry] = (int32_t)token;
      counts[entry] = 0;
    }
    counts[entry] += is_skipped ? 0.0f : 1.0f;
    p.seen_generated[slot * p.seen_width + entry] = true;
  }
};

static bool are_ids(const int32_t* ids, int64_t count, int64_t width, int64_t vocab) {
  if (count < 0 || count > width) return false;
  bool are_all = true;
  for (int64_t i = 0; i < count; ++i) are_all &= (uint32_t)ids[i] < vocab;
  return are_all;
}

// The slot exists, has room for one more seen token, and lists ids of the vocabulary only.
static bool is_valid(const Sample& p, int64_t slot) {
  if (slot >= p.num_slots) return false;
  const int64_t* integers = p.integers + slot * NUM_INTEGERS;
  if (integers[IS_PENALIZED] &&
      !are_ids(p.seen_ids + slot * p.seen_width, integers[NUM_SEEN], p.seen_width - 1, p.vocab))
    return false;
  return are_ids(p.bias_ids + slot * p.bias_width, integers[NUM_BIASES], p.bias_width, p.vocab) &&
         are_ids(p.stops + slot * p.stop_width, integers[NUM_STOPS], p.stop_width, p.vocab);
}

// The first row whose slot is not valid, before anything is touched; -1 if there is none.
extern "C" int32_t sample_tokens(const Sample* p) {
  for (int64_t i = 0; i < p->num_rows; ++i)
    if (p->slot_index[i] >= 0 && !is_valid(*p, p->slot_index[i])) return (int32_t)i;
  for_each_tile(p->num_rows, [p](int64_t i) { thread_object<Sampler>().sample(*p, i); });
  return -1;
}
