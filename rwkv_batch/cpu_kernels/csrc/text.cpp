// The text of sampled tokens: search for stop strings token by token, and token ids to valid UTF-8. Definitions are in
// rwkv_batch/text/stop_strings.py and rwkv_batch/text/detokenizer.py.
#include <cstdint>
#include <cstring>
#include <vector>

// The bytes of all tokens. An id that is not from 0 to num_ids - 1 has no bytes.
struct TokenTable {
  int64_t num_ids;
  const uint8_t* bytes;
  const int64_t* start;  // [num_ids + 1]: token i is bytes[start[i]] to bytes[start[i + 1] - 1]
};

struct Bytes {
  const uint8_t* data;
  int64_t size;
};

static Bytes bytes_of(const TokenTable& table, int64_t id) {
  if (id < 0 || id >= table.num_ids) return {nullptr, 0};
  return {table.bytes + table.start[id], table.start[id + 1] - table.start[id]};
}

// Aho and Corasick's automaton (Communications of the ACM 18(6), 1975): a state is the longest end of the text that is
// also the beginning of a pattern. Bytes that occur in no pattern share class 0: a state takes four bytes for each
// class.
struct Automaton {
  int64_t num_classes = 1;
  uint16_t class_of[256] = {};
  std::vector<int32_t> next;     // [states, classes]
  std::vector<int32_t> pattern;  // [states]: the longest pattern that ends in this state; -1: none

  int32_t step(int32_t state, uint8_t byte) const { return next[state * num_classes + class_of[byte]]; }

  int32_t add_state() {
    next.resize(next.size() + num_classes, -1);
    pattern.push_back(-1);
    return (int32_t)pattern.size() - 1;
  }
};

extern "C" Automaton* stop_automaton_new(int64_t num_patterns, const uint8_t* bytes, const int64_t* start) {
  Automaton& a = *new Automaton;
  for (int64_t i = 0; i < start[num_patterns]; ++i)
    if (!a.class_of[bytes[i]]) a.class_of[bytes[i]] = (uint16_t)a.num_classes++;
  a.add_state();
  for (int64_t p = 0; p < num_patterns; ++p) {
    int32_t state = 0;
    for (int64_t i = start[p]; i < start[p + 1]; ++i) {
      const int64_t edge = state * a.num_classes + a.class_of[bytes[i]];
      if (a.next[edge] < 0) {
        const int32_t added = a.add_state();
        a.next[edge] = added;
      }
      state = a.next[edge];
    }
    a.pattern[state] = (int32_t)p;
  }
  // Breadth first: a state copies missing transitions from its longest shorter end, which is complete before it.
  std::vector<int32_t> shorter(a.pattern.size(), 0), queue = {0};
  for (size_t head = 0; head < queue.size(); ++head) {
    const int32_t state = queue[head];
    if (a.pattern[state] < 0) a.pattern[state] = a.pattern[shorter[state]];
    for (int64_t c = 0; c < a.num_classes; ++c) {
      int32_t& next = a.next[state * a.num_classes + c];
      const int32_t otherwise = state ? a.next[shorter[state] * a.num_classes + c] : 0;
      if (next < 0) {
        next = otherwise;
      } else {
        shorter[next] = otherwise;
        queue.push_back(next);
      }
    }
  }
  return &a;
}

extern "C" void stop_automaton_free(Automaton* automaton) { delete automaton; }

struct PushTokens {
  int64_t num_rows, num_slots;
  TokenTable table;
  const int64_t *slots, *token_ids;  // [n]
  const Automaton** automaton;       // [P]; null: this slot's text is not searched
  int64_t* state;                    // [P]
  int64_t* ignored_tokens;           // [P]: tokens in which no match counts yet
  int64_t* text_bytes;               // [P]: bytes of the text so far
  int64_t *index, *pattern;          // [P]: of each match, its index in [0, n) and its pattern
  int64_t* end;                      // [P]: of each match, bytes of the text up to its end
};

// Returns the number of matches; -1, without any change, if a slot does not exist.
extern "C" int64_t stop_push(const PushTokens* p) {
  int64_t found = 0;
  for (int64_t i = 0; i < p->num_rows; ++i)
    if (p->slots[i] < 0 || p->slots[i] >= p->num_slots) return -1;
  for (int64_t i = 0; i < p->num_rows; ++i) {
    const int64_t slot = p->slots[i];
    const Automaton* automaton = p->automaton[slot];
    if (!automaton) continue;
    const Bytes token = bytes_of(p->table, p->token_ids[i]);
    const bool ignored = p->ignored_tokens[slot] > 0;
    if (ignored) --p->ignored_tokens[slot];
    int32_t state = (int32_t)p->state[slot];
    for (int64_t b = 0; b < token.size; ++b) {
      state = automaton->step(state, token.data[b]);
      if (automaton->pattern[state] >= 0 && !ignored) {
        p->index[found] = i;
        p->pattern[found] = automaton->pattern[state];
        p->end[found++] = p->text_bytes[slot] + b + 1;
        p->automaton[slot] = nullptr;
        break;
      }
    }
    p->state[slot] = state;
    p->text_bytes[slot] += token.size;
  }
  return found;
}

// Copies n bytes. Each maximal beginning of a character that is not a whole one, and each other byte that is not UTF-8,
// becomes U+FFFD (The Unicode Standard, section 3.9, "U+FFFD Substitution of Maximal Subparts"). Returns the end.
static uint8_t* copy_valid(const uint8_t* s, int64_t n, uint8_t* out) {
  int64_t i = 0;
  while (i < n) {
    uint64_t eight;
    while (i + 8 <= n && (std::memcpy(&eight, s + i, 8), !(eight & 0x8080808080808080ull))) {
      std::memcpy(out, &eight, 8);
      i += 8;
      out += 8;
    }
    if (i == n) break;
    const uint8_t lead = s[i];
    if (lead < 0x80) {
      *out++ = lead;
      ++i;
      continue;
    }
    const int more = lead < 0xC2 ? 0 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : lead < 0xF5 ? 3 : 0;
    // Limits of the second byte exclude overlong forms, surrogates, and code points above U+10FFFF.
    uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    int length = 1;
    while (length <= more && i + length < n && s[i + length] >= low && s[i + length] <= high) {
      ++length;
      low = 0x80;
      high = 0xBF;
    }
    if (more && length == more + 1) {
      for (int k = 0; k < length; ++k) *out++ = s[i + k];
    } else {
      *out++ = 0xEF;
      *out++ = 0xBF;
      *out++ = 0xBD;
    }
    i += length;
  }
  return out;
}

struct DecodeTokens {
  int64_t num_texts;
  TokenTable table;
  const int32_t* token_ids;  // [N]
  const int64_t* offsets;    // [n + 1]
  const int64_t* limits;     // [n]: bytes of the tokens that are text; negative: all
  uint8_t* data;             // at least three times the bytes of all tokens
  int64_t* data_offsets;     // [n + 1]
};

// Bytes of all tokens together.
extern "C" int64_t tokens_size(const TokenTable* table, int64_t num_tokens, const int32_t* token_ids) {
  int64_t size = 0;
  for (int64_t i = 0; i < num_tokens; ++i) size += bytes_of(*table, token_ids[i]).size;
  return size;
}

extern "C" void tokens_to_utf8(const DecodeTokens* p) {
  std::vector<uint8_t> text;
  uint8_t* out = p->data;
  p->data_offsets[0] = 0;
  for (int64_t i = 0; i < p->num_texts; ++i) {
    text.clear();
    for (int64_t t = p->offsets[i]; t < p->offsets[i + 1]; ++t) {
      const Bytes token = bytes_of(p->table, p->token_ids[t]);
      text.insert(text.end(), token.data, token.data + token.size);
    }
    const int64_t size = (int64_t)text.size();
    out = copy_valid(text.data(), p->limits[i] < 0 || p->limits[i] > size ? size : p->limits[i], out);
    p->data_offsets[i + 1] = out - p->data;
  }
}
