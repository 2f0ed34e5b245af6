// Ranks of tokens in their rows, and the most likely tokens there. The definition is in engine/logprobs.py.
#include "logits_row.h"
#include "parallel.h"

struct TopTokens {
  int64_t num_tokens, vocab, count;
  const float* logits;              // [B, V]
  const int64_t *rows, *token_ids;  // [n]
  int64_t* rank;                    // [n]
  int64_t* top_ids;                 // [n, K]
};

struct Ranked {
  int64_t key;  // orders by logit, then by lowest id; no two are equal
  int32_t id;

  bool operator<(const Ranked& other) const { return key > other.key; }
};

struct Ranking {
  LogitsRow row;
  std::vector<float> sorted_max;
  std::vector<Ranked> found;
};

static Ranked ranked(float logit, int64_t id) {
  int32_t bits;
  logit += 0.0f;  // -0 is 0
  std::memcpy(&bits, &logit, sizeof bits);
  return {(bits ^ ((bits >> 31) & 0x7FFFFFFF)) * (INT64_C(1) << 31) - id, (int32_t)id};
}

static int64_t rank_of(int64_t token, const LogitsRow& row) {
  int64_t rank = 1;
  const float logit = row.x[token], above = std::nextafter(logit, INFINITY);
  for (int64_t t = 0; t < row.tiles; ++t) {
    if (!(row.tile_max[t] >= logit)) continue;
    const int64_t before = token - t * TILE;
    const uint64_t listed = before <= 0 ? 0 : before >= TILE ? ~0ull : (1ull << before) - 1;
    const uint64_t larger = logit < INFINITY ? at_least(row.tile(t), above) : 0;
    rank += __builtin_popcountll(larger | (at_least(row.tile(t), logit) & listed));
  }
  return rank;
}

// The tokens from a limit up are sorted. The limit is the `count`-th largest of the tiles' maxima: at least `count`
// tokens reach it, and hardly more.
static void find_top(int64_t count, Ranking& r) {
  float limit = -INFINITY;
  if (count <= r.row.tiles) {
    auto& sorted = r.sorted_max = r.row.tile_max;
    std::nth_element(sorted.begin(), sorted.begin() + (count - 1), sorted.end(), std::greater<float>());
    limit = r.sorted_max[count - 1];
  }
  r.found.clear();
  for (int64_t t = 0; t < r.row.tiles; ++t) {
    if (r.row.tile_max[t] < limit) continue;
    const float* x = r.row.tile(t);
    const int64_t width = std::min<int64_t>(TILE, r.row.vocab - t * TILE);
    for (int64_t i = 0; i < width; ++i)
      if (!(x[i] < limit)) r.found.push_back(ranked(x[i], t * TILE + i));
  }
  std::partial_sort(r.found.begin(), r.found.begin() + count, r.found.end());
}

extern "C" void top_tokens(const TopTokens* p) {
  for_each_tile(p->num_tokens, [p](int64_t i) {
    Ranking& r = thread_object<Ranking>();
    r.row.read_maxima(p->logits + p->rows[i] * p->vocab, p->vocab);
    p->rank[i] = rank_of(p->token_ids[i], r.row);
    if (p->count > 0) find_top(p->count, r);
    for (int64_t k = 0; k < p->count; ++k) p->top_ids[i * p->count + k] = r.found[k].id;
  });
}
