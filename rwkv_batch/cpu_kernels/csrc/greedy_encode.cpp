// Greedy longest match: bytes → token ids. The definition is ByteTrie in rwkv_batch/text/vocabulary.py.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

// A double-array trie (Aoe, IEEE Transactions on Software Engineering 15(9), 1989): the child of node n for byte b is
// node base[n] + b, if that node says that n is its parent. So a step of a match reads one node, however many children
// there are.
struct Node {
  int32_t base = 0;
  int32_t parent = -1;  // -1: no node
  int32_t id = 0;       // of the longest token that ends on the path to this node
  int32_t length = 0;   // of that token, in bytes; 0: none
};

struct GreedyTrie {
  std::vector<Node> nodes;
};

namespace {

struct Token {
  uint64_t first_bytes;  // big-endian, so that numbers order as bytes do
  const uint8_t* data;
  int64_t size;
  int32_t id;
};

bool is_before(const Token& a, const Token& b) {
  if (a.first_bytes != b.first_bytes) return a.first_bytes < b.first_bytes;
  const int order = std::memcmp(a.data, b.data, std::min(a.size, b.size));
  return order ? order < 0 : a.size < b.size;
}

// Assigns places in the array to nodes. Free places form a linked list, in ascending order.
struct Builder {
  static constexpr int32_t ALPHABET = 256, MAX_TRIES = 64;
  std::vector<Node>& nodes;
  std::vector<int32_t> next_free, previous_free;  // the list begins and ends at place 0, the root's

  explicit Builder(std::vector<Node>& nodes) : nodes(nodes), next_free(ALPHABET, 0), previous_free(ALPHABET, 0) {
    nodes.assign(ALPHABET, Node());  // a base is not negative, so that no child gets one of these places
  }

  void grow_to(int32_t size) {
    for (int32_t place = (int32_t)nodes.size(); place < size; ++place) {
      const int32_t last = previous_free[0];
      nodes.emplace_back();
      next_free.push_back(0);
      previous_free.push_back(last);
      next_free[last] = previous_free[0] = place;
    }
  }

  void take(int32_t place, int32_t parent) {
    nodes[place] = {0, parent, nodes[parent].id, nodes[parent].length};
    next_free[previous_free[place]] = next_free[place];
    previous_free[next_free[place]] = previous_free[place];
  }

  bool fits(int32_t base, const std::vector<uint8_t>& bytes) const {
    for (uint8_t byte : bytes)
      if (base + byte < (int32_t)nodes.size() && nodes[base + byte].parent >= 0) return false;
    return true;
  }

  // Finds a base whose places for these bytes, given in ascending order, are free. The array has a place for every byte
  // after it.
  int32_t find_base(const std::vector<uint8_t>& bytes) {
    int32_t base = (int32_t)nodes.size(), tries = 0;
    for (int32_t place = next_free[0]; place && tries < MAX_TRIES; place = next_free[place], ++tries)
      if (fits(place - bytes[0], bytes)) {
        base = place - bytes[0];
        break;
      }
    grow_to(base + ALPHABET);
    return base;
  }
};

struct Range {  // the sorted tokens that begin with the bytes of a node
  int32_t node, depth;
  int64_t begin, end;
};

}  // namespace

// Of several tokens with the same bytes the last one counts.
extern "C" GreedyTrie* greedy_trie_new(int64_t num_tokens, const uint8_t* bytes, const int64_t* start,
                                       const int32_t* ids) {
  std::vector<Token> tokens(num_tokens);
  for (int64_t i = 0; i < num_tokens; ++i) {
    Token& token = tokens[i] = {0, bytes + start[i], start[i + 1] - start[i], ids[i]};
    for (int64_t b = 0; b < std::min<int64_t>(token.size, 8); ++b)
      token.first_bytes |= (uint64_t)token.data[b] << (56 - 8 * b);
  }
  std::stable_sort(tokens.begin(), tokens.end(), is_before);
  GreedyTrie* trie = new GreedyTrie;
  std::vector<Node>& nodes = trie->nodes;
  Builder builder(nodes);
  std::vector<Range> queue = {{0, 0, 0, num_tokens}};
  std::vector<uint8_t> children;
  for (size_t head = 0; head < queue.size(); ++head) {
    Range range = queue[head];
    for (; range.begin < range.end && tokens[range.begin].size == range.depth; ++range.begin) {
      nodes[range.node].id = tokens[range.begin].id;
      nodes[range.node].length = range.depth;
    }
    if (range.begin == range.end) continue;
    children.clear();
    const size_t first_child = queue.size();
    for (int64_t i = range.begin; i < range.end; ++i) {
      const uint8_t byte = tokens[i].data[range.depth];
      if (children.empty() || children.back() != byte) {
        children.push_back(byte);
        queue.push_back({0, range.depth + 1, i, i});
      }
      queue.back().end = i + 1;
    }
    const int32_t base = builder.find_base(children);
    nodes[range.node].base = base;
    for (size_t c = 0; c < children.size(); ++c) {
      queue[first_child + c].node = base + children[c];
      builder.take(base + children[c], range.node);
    }
  }
  builder.grow_to(Builder::ALPHABET * 2);  // a leaf has base 0
  return trie;
}

extern "C" void greedy_trie_free(GreedyTrie* trie) { delete trie; }

struct GreedyEncode {
  const GreedyTrie* trie;
  int64_t num_texts;
  const uint8_t* bytes;
  const int64_t* offsets;  // [n + 1]
  int32_t* ids;            // as many as there are bytes
  int64_t* id_offsets;     // [n + 1]
  int64_t* unmatched;      // [n]: position in the text at which no token matches: its ids end there; -1: none
};

extern "C" void greedy_encode(const GreedyEncode* p) {
  const Node* nodes = p->trie->nodes.data();
  int64_t count = 0;
  p->id_offsets[0] = 0;
  for (int64_t text = 0; text < p->num_texts; ++text) {
    p->unmatched[text] = -1;
    const int64_t end = p->offsets[text + 1];
    for (int64_t position = p->offsets[text]; position < end;) {
      int32_t node = 0;
      for (int64_t i = position; i < end; ++i) {
        const int32_t child = nodes[node].base + p->bytes[i];
        if (nodes[child].parent != node) break;
        node = child;
      }
      if (!nodes[node].length) {
        p->unmatched[text] = position - p->offsets[text];
        break;
      }
      p->ids[count++] = nodes[node].id;
      position += nodes[node].length;
    }
    p->id_offsets[text + 1] = count;
  }
}
