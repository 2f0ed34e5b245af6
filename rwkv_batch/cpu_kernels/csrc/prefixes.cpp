// Sorted prompts and the tokens that neighbours share. The definition is in rwkv_batch/engine/shared_lengths.py.
#include <algorithm>
#include <cstdint>
#include <vector>

struct SortPrompts {
  int64_t num_prompts;
  const int32_t* token_ids;  // [N], not negative
  const int64_t* offsets;    // [n + 1]
  int64_t* order;            // [n]
  int64_t* shared;           // [n]
};

namespace {

struct Prompt {
  uint64_t first_tokens;  // two tokens, each plus one so that no token is less than any
  const int32_t* tokens;
  int64_t length, index;
};

int64_t shared_length(const Prompt& a, const Prompt& b) {
  const int64_t limit = std::min(a.length, b.length);
  return std::mismatch(a.tokens, a.tokens + limit, b.tokens).first - a.tokens;
}

bool is_before(const Prompt& a, const Prompt& b) {
  if (a.first_tokens != b.first_tokens) return a.first_tokens < b.first_tokens;
  const int64_t shared = shared_length(a, b);
  if (shared < a.length && shared < b.length) return a.tokens[shared] < b.tokens[shared];
  return a.length != b.length ? a.length < b.length : a.index < b.index;
}

}  // namespace

extern "C" void sort_prompts(const SortPrompts* p) {
  std::vector<Prompt> prompts(p->num_prompts);
  for (int64_t i = 0; i < p->num_prompts; ++i) {
    const int32_t* tokens = p->token_ids + p->offsets[i];
    const int64_t length = p->offsets[i + 1] - p->offsets[i];
    const uint64_t first = length > 0 ? (uint64_t)tokens[0] + 1 : 0, second = length > 1 ? (uint64_t)tokens[1] + 1 : 0;
    prompts[i] = {first << 32 | second, tokens, length, i};
  }
  std::sort(prompts.begin(), prompts.end(), is_before);
  for (int64_t i = 0; i < p->num_prompts; ++i) {
    p->order[i] = prompts[i].index;
    p->shared[i] = i ? shared_length(prompts[i - 1], prompts[i]) : 0;
  }
}
