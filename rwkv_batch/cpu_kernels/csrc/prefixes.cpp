// Sorts prompts and counts the leading tokens that neighbors share. The definition is in
// rwkv_batch/engine/shared_lengths.py.
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
  uint64_t key;  // the next two tokens, each plus one; 0: the prompt has ended
  const int32_t* tokens;
  int64_t length, index;

  uint64_t key_of(int64_t depth) const { return depth < length ? (uint64_t)tokens[depth] + 1 : 0; }
};

struct Group {  // prompts whose first `depth` tokens are equal
  int64_t begin, end, depth;
};

bool is_before(const Prompt& a, const Prompt& b) { return a.key != b.key ? a.key < b.key : a.index < b.index; }

// Leading tokens in common, at most `limit`, of prompts whose first `depth` tokens are equal.
int64_t shared_length(const Prompt& a, const Prompt& b, int64_t depth, int64_t limit) {
  while (depth < limit && a.tokens[depth] == b.tokens[depth]) ++depth;
  return depth;
}

// Leading tokens that all prompts from `first` to `last` have in common, of which `depth` are known. Compared a block
// at a time, so that little is compared beyond the first difference.
int64_t shared_by_all(const Prompt* first, const Prompt* last, int64_t depth) {
  constexpr int64_t BLOCK = 128;
  int64_t shortest = first->length;
  for (const Prompt* prompt = first; prompt <= last; ++prompt) shortest = std::min(shortest, prompt->length);
  while (depth < shortest) {
    const int64_t end = std::min(depth + BLOCK, shortest);
    int64_t common = end;
    for (const Prompt* prompt = first + 1; prompt <= last; ++prompt)
      common = shared_length(*first, *prompt, depth, common);
    depth = common;
    if (common < end) break;
  }
  return depth;
}

}  // namespace

extern "C" void sort_prompts(const SortPrompts* p) {
  std::vector<Prompt> prompts(p->num_prompts);
  for (int64_t i = 0; i < p->num_prompts; ++i)
    prompts[i] = {0, p->token_ids + p->offsets[i], p->offsets[i + 1] - p->offsets[i], i};
  std::vector<Group> groups = {{0, p->num_prompts, 0}};  // tokens that the whole group shares do not order it
  while (!groups.empty()) {
    const Group group = groups.back();
    groups.pop_back();
    const int64_t depth = shared_by_all(&prompts[group.begin], &prompts[group.end - 1], group.depth);
    for (int64_t i = group.begin; i < group.end; ++i)
      prompts[i].key = prompts[i].key_of(depth) << 32 | prompts[i].key_of(depth + 1);
    std::sort(prompts.begin() + group.begin, prompts.begin() + group.end, is_before);
    for (int64_t begin = group.begin, end; begin < group.end; begin = end) {
      const uint64_t key = prompts[begin].key;
      for (end = begin + 1; end < group.end && prompts[end].key == key;) ++end;
      if (end - begin > 1 && (uint32_t)key)
        groups.push_back({begin, end, depth + 2});  // else the prompts have ended, and are equal
    }
  }
  for (int64_t i = 0; i < p->num_prompts; ++i) {
    const Prompt &before = prompts[i ? i - 1 : 0], &prompt = prompts[i];
    p->order[i] = prompt.index;
    p->shared[i] = i ? shared_length(before, prompt, 0, std::min(before.length, prompt.length)) : 0;
  }
}
