// RWKV-7, everything per head fused: decay, in-context rate, value residual, state update, read-out, norm, bonus, gate.
// A block takes one head of one row through the row's tokens, with one barrier a token.
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

struct Token {
  float r[CHANNELS], w[CHANNELS], k[CHANNELS], v[CHANNELS], a[CHANNELS], g[CHANNELS];
  float v_first[CHANNELS], v_gate[CHANNELS];
};

static __device__ __forceinline__ void load_token(Token& x, const Params& p, i64 at) {
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

// A token's vectors and output, in shared memory.
struct Shared {
  Update update;
  alignas(16) float r[SIZE], y[SIZE];
};

// A token's other terms of the output, in the last warp's registers.
struct Kept {
  float value[CHANNELS], gate[CHANNELS], bonus;
};

struct Head {
  float w0[CHANNELS], a0[CHANNELS], v0[CHANNELS], k_k[CHANNELS], k_a[CHANNELS], r_k[CHANNELS];
  float norm_weight[CHANNELS], norm_bias[CHANNELS];
};

static __device__ __forceinline__ void prepare(Shared& to, Kept& kept, const Token& x, const Head& head,
                                               bool residual) {
  float decay[CHANNELS], removal[CHANNELS], erased[CHANNELS], key[CHANNELS], products[CHANNELS];
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) {
    removal[i] = x.k[i] * head.k_k[i];
    products[i] = removal[i] * removal[i];
  }
  const float unit = 1.0f / fmaxf(sqrtf(sum_own(products)), 1e-12f);
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) {
    const float rate = sigmoid(head.a0[i] + x.a[i]);
    decay[i] = __expf(-0.6065306597126334f * sigmoid(head.w0[i] + x.w[i]));
    kept.value[i] = x.v[i];
    if (residual) kept.value[i] += (x.v_first[i] - x.v[i]) * sigmoid(head.v0[i] + x.v_gate[i]);
    removal[i] *= unit;
    erased[i] = -removal[i] * rate;
    key[i] = x.k[i] * (1.0f + (rate - 1.0f) * head.k_a[i]);
    products[i] = x.r[i] * key[i] * head.r_k[i];
    kept.gate[i] = x.g[i];
  }
  kept.bonus = sum_own(products);
  put_own(to.update.decay, decay);
  put_own(to.update.removal, removal);
  put_own(to.update.erased, erased);
  put_own(to.update.key, key);
  put_own(to.r, x.r);
  put_own(to.update.value, kept.value);
}

static __device__ __forceinline__ void apply(float (&state)[ROWS][COLUMNS], const Update& x) {
  float removal[ROWS], erased[ROWS], decay[ROWS], key[ROWS], removed[COLUMNS], value[COLUMNS];
  load_rows(removal, x.removal);
  read_out(removed, removal, state);
  load_rows(erased, x.erased);
  load_rows(decay, x.decay);
  load_rows(key, x.key);
  load(value, x.value + own_column());
#pragma unroll
  for (int j = 0; j < ROWS; ++j)
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
      state[j][c] = fmaf(state[j][c], decay[j], fmaf(erased[j], removed[c], key[j] * value[c]));
}

static __device__ __forceinline__ void advance(float (&state)[ROWS][COLUMNS], Shared& x, int position, int first_row) {
  float r[ROWS], y[COLUMNS];
  apply(state, x.update);
  load_rows(r, x.r);
  read_out(y, r, state);
  round_state(state, static_cast<STATE*>(nullptr), position, first_row);
  if (own_lane() == 0) store(x.y + own_column(), y);
}

// Update i of a slot's ring.
static __device__ __forceinline__ Update& update_of(const Params& p, int slot, int i, int i_head) {
  return reinterpret_cast<Update*>(p.ring + slot * p.ring_stride)[(i64)i * p.num_heads + i_head];
}

// Copies an update. The threads that hold the state call this.
static __device__ __forceinline__ void copy_update(Update& to, const Update& from) {
  const int i = 4 * (int)threadIdx.x;
  if (i >= (int)(sizeof(Update) / sizeof(float))) return;
  float four[4];
  load(four, reinterpret_cast<const float*>(&from) + i);
  store(reinterpret_cast<float*>(&to) + i, four);
}

static __device__ __forceinline__ void finish(const Shared& x, const Kept& kept, const Head& head, DTYPE* out,
                                              float eps) {
  float y[CHANNELS];
  load_own(y, x.y);
  head_norm(y, head.norm_weight, head.norm_bias, eps);
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) y[i] = (y[i] + kept.bonus * kept.value[i]) * kept.gate[i];
  put_out(out, y);
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) wkv7(const Params p) {
  __shared__ Shared shared[2];
  __shared__ Update pending[MAX_PENDING];
  const int row = blockIdx.x / p.num_heads, i_head = blockIdx.x % p.num_heads;
  const int slot = p.rows.slot[row], start = p.rows.start[row], length = p.rows.start[row + 1] - start;
  const i64 width = (i64)p.num_heads * SIZE;
  const int first = i_head * SIZE;
  i64 at = start * width + first;
  if (slot < 0) return write_zeros(p.out, at, length, width);

  if (threadIdx.x < STATE_THREADS) {
    STATE* record = p.state + slot * p.slot_stride + (i64)first * SIZE;
    const int position = sizeof(STATE) == 2 ? p.rows.position[row] : 0;
    const int deferred = p.deferred ? p.deferred[row] : -1, num_pending = deferred < 0 ? ~deferred : deferred;
    float state[ROWS][COLUMNS];
    load_state(state, record);
    for (int i = 0; i < num_pending; ++i) copy_update(pending[i], update_of(p, slot, i, i_head));
    __syncthreads();
    for (int i = 0; i < num_pending; ++i) {
      apply(state, pending[i]);
      round_state(state, static_cast<STATE*>(nullptr), position - num_pending + i, first);
    }
    for (int t = 0; t < length; ++t) {
      advance(state, shared[t % 2], position + t, first);
      __syncthreads();
    }
    if (deferred < 0) store_state(record, state);
    else  // the row has one token
      copy_update(update_of(p, slot, deferred, i_head), shared[0].update);
    return;
  }
  const bool residual = p.v_first != nullptr;
  Token token;
  Head head;
  Kept kept, before;
  load_token(token, p, at);
  load_own(head.w0, p.w0 + first);
  load_own(head.a0, p.a0 + first);
  if (residual) load_own(head.v0, p.v0 + first);
  load_own(head.k_k, p.k_k + first);
  load_own(head.k_a, p.k_a + first);
  load_own(head.r_k, p.r_k + first);
  load_own(head.norm_weight, p.norm_weight + first);
  load_own(head.norm_bias, p.norm_bias + first);
  prepare(shared[0], kept, token, head, residual);
  __syncthreads();
  // The other warps advance the state by token t meanwhile. A barrier counts warps, whichever line they wait at: this
  // loop has as many as the loop above.
  for (int t = 0; t < length; ++t, at += width) {
    const bool has_next = t + 1 < length;
    if (has_next) load_token(token, p, at + width);
    if (t > 0) finish(shared[(t + 1) % 2], before, head, p.out + at - width, p.eps);
    before = kept;
    if (has_next) prepare(shared[(t + 1) % 2], kept, token, head, residual);
    __syncthreads();
  }
  finish(shared[(length + 1) % 2], before, head, p.out + at - width, p.eps);
}
