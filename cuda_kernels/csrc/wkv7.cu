// RWKV-7, everything per head fused: decay, in-context rate, value residual, state update, read-out, norm, bonus, gate.
//
// With a ring, the state in the pool lacks the last tokens of a row's sequence: the ring has an update for each. A
// block applies them to the state in registers first, in their order, so that no bit differs from a state that lacks
// none.
#include "heads.h"

constexpr int MAX_PENDING = 3;  // updates of a ring

// What a token does to a head's state.
struct Update {
  alignas(16) float decay[SIZE], removal[SIZE], erased[SIZE], key[SIZE], value[SIZE];
};

// The updates that a block has fetched.
static __device__ __forceinline__ Update* fetched() {
  __shared__ Update updates[MAX_PENDING];
  return updates;
}

struct Params {
  const DTYPE *r, *w, *k, *v, *a, *g, *v_first, *v_gate;                  // [M, A]; the last two null in layer 0
  const float *w0, *a0, *v0, *k_k, *k_a, *r_k, *norm_weight, *norm_bias;  // [A]
  STATE* state;  // slot s, head h at state + s * slot_stride + h * SIZE * SIZE
  float* ring;   // [P, n - 1, H, 5, SIZE], slots ring_stride apart, or null
  DTYPE* out;    // [M, A]
  Rows rows;
  const int* deferred;  // [B], null without a ring; see `RowTensors` in models/rows.py
  i64 slot_stride, ring_stride;
  int num_heads;
  float eps;
};

struct Recurrence {
  using Params = ::Params;
  struct Token {
    DTYPE r[CHANNELS], w[CHANNELS], k[CHANNELS], v[CHANNELS], a[CHANNELS], g[CHANNELS];
    DTYPE v_first[CHANNELS], v_gate[CHANNELS];
  };
  struct Head {
    float w0[CHANNELS], a0[CHANNELS], v0[CHANNELS], k_k[CHANNELS], k_a[CHANNELS], r_k[CHANNELS];
    float norm_weight[CHANNELS], norm_bias[CHANNELS];
  };
  struct Vectors {
    Update update;
    float r[SIZE];
  };
  struct Kept {
    float rate[CHANNELS], value[CHANNELS], gate[CHANNELS], bonus;
  };

  static __device__ __forceinline__ void load(Token& x, const Params& p, i64 at) {
    load_own(x.r, p.r + at);
    load_own(x.w, p.w + at);
    load_own(x.k, p.k + at);
    load_own(x.v, p.v + at);
    load_own(x.a, p.a + at);
    load_own(x.g, p.g + at);
    if (p.v_first) {
      load_own(x.v_first, p.v_first + at);
      load_own(x.v_gate, p.v_gate + at);
    }
  }

  static __device__ __forceinline__ void load(Head& head, const Params& p, int first) {
    load_own(head.w0, p.w0 + first);
    load_own(head.a0, p.a0 + first);
    if (p.v_first) load_own(head.v0, p.v0 + first);
    load_own(head.k_k, p.k_k + first);
    load_own(head.k_a, p.k_a + first);
    load_own(head.r_k, p.r_k + first);
    load_own(head.norm_weight, p.norm_weight + first);
    load_own(head.norm_bias, p.norm_bias + first);
  }

  static __device__ __forceinline__ void begin(Vectors& to, Kept& kept, const Token& x, const Head& head,
                                               const Params&) {
    float removal[CHANNELS], erased[CHANNELS], products[CHANNELS];
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      removal[i] = to_float(x.k[i]) * head.k_k[i];
      products[i] = removal[i] * removal[i];
    }
    const float unit = 1.0f / fmaxf(sqrtf(sum_own(products)), 1e-12f);
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      kept.rate[i] = sigmoid(head.a0[i] + to_float(x.a[i]));
      removal[i] *= unit;
      erased[i] = -removal[i] * kept.rate[i];
    }
    put_own(to.update.removal, removal);
    put_own(to.update.erased, erased);
  }

  static __device__ __forceinline__ void complete(Vectors& to, Kept& kept, const Token& x, const Head& head,
                                                  const Params& p) {
    float decay[CHANNELS], key[CHANNELS], r[CHANNELS], products[CHANNELS];
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      r[i] = to_float(x.r[i]);
      key[i] = to_float(x.k[i]) * (1.0f + (kept.rate[i] - 1.0f) * head.k_a[i]);
      products[i] = r[i] * key[i] * head.r_k[i];
      decay[i] = __expf(-0.6065306597126334f * sigmoid(head.w0[i] + to_float(x.w[i])));
      kept.value[i] = to_float(x.v[i]);
      if (p.v_first)
        kept.value[i] += (to_float(x.v_first[i]) - to_float(x.v[i])) * sigmoid(head.v0[i] + to_float(x.v_gate[i]));
      kept.gate[i] = to_float(x.g[i]);
    }
    kept.bonus = sum_own(products);
    put_own(to.update.decay, decay);
    put_own(to.update.key, key);
    put_own(to.r, r);
    put_own(to.update.value, kept.value);
  }

  static __device__ __forceinline__ void apply(float (&state)[ROWS][COLUMNS], const Update& x) {
    float removal[ROWS], erased[ROWS], decay[ROWS], key[ROWS], removed[COLUMNS], value[COLUMNS];
    load_rows(removal, x.removal);
    read_out(removed, removal, state);
    load_rows(erased, x.erased);
    load_rows(decay, x.decay);
    load_rows(key, x.key);
    ::load(value, x.value + own_column());
    sum_columns(removed);
#pragma unroll
    for (int j = 0; j < ROWS; ++j)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c)
        state[j][c] = fmaf(state[j][c], decay[j], fmaf(erased[j], removed[c], key[j] * value[c]));
  }

  static __device__ __forceinline__ void advance(float (&state)[ROWS][COLUMNS], float (&y)[COLUMNS],
                                                 const Vectors& x) {
    float r[ROWS];
    apply(state, x.update);
    load_rows(r, x.r);
    read_out(y, r, state);
  }

  static __device__ __forceinline__ void before_norm(float (&)[CHANNELS], const Kept&) {}
  static __device__ __forceinline__ void after_norm(float (&y)[CHANNELS], const Kept& kept) {
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) y[i] = (y[i] + kept.bonus * kept.value[i]) * kept.gate[i];
  }

  class Ring {
   public:
    __device__ __forceinline__ Ring(const Params& p, int row, int slot, int i_head) : num_heads(p.num_heads) {
      if (!p.ring) return;
      const int deferred = p.deferred[row];
      writes = deferred < 0;
      num_pending = writes ? ~deferred : deferred;
      updates = reinterpret_cast<Update*>(p.ring + slot * p.ring_stride) + i_head;
    }
    __device__ __forceinline__ void fetch() const {
      for (int i = 0; i < num_pending; ++i) copy(fetched()[i], updates[(i64)i * num_heads]);
    }
    __device__ __forceinline__ void apply(float (&state)[ROWS][COLUMNS], int position, int first) const {
      for (int i = 0; i < num_pending; ++i) {
        const int at_token = position - num_pending + i;
        Recurrence::apply(state, fetched()[i]);
        round_state(state, static_cast<STATE*>(nullptr), at_token, first);
      }
    }
    __device__ __forceinline__ bool add(const Vectors& vectors) const {
      if (!writes) copy(updates[(i64)num_pending * num_heads], vectors.update);
      return !writes;
    }

   private:
    static __device__ __forceinline__ void copy(Update& to, const Update& from) {
      const int i = 4 * (int)threadIdx.x;
      if (i >= (int)(sizeof(Update) / sizeof(float))) return;
      float four[4];
      ::load(four, reinterpret_cast<const float*>(&from) + i);
      store(reinterpret_cast<float*>(&to) + i, four);
    }

    Update* updates = nullptr;  // of the head, in the slot's ring
    int num_heads, num_pending = 0;
    bool writes = true;
  };
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) wkv7(const Params p) { run_head<Recurrence>(p); }
