// RWKV-5 and 6: y = r (S + diag(u) k^T v), S <- diag(w) S + k^T v, then group norm and, but for 5.0, a SiLU gate.
// v5's decay is one factor per key channel; v6's is exp(-exp(d + w)) per token.
// A block takes one head of one row through the row's tokens, with one barrier a token.
#include "heads.h"

struct Params {
  const DTYPE *r, *k, *v, *g, *w;                        // [M, A]; g null in 5.0, w null in v5
  const float *decay, *bonus, *norm_weight, *norm_bias;  // [A]
  STATE* state;                                          // slot s, head h at state + s * slot_stride + h * SIZE * SIZE
  DTYPE* out;                                            // [M, A]
  Rows rows;
  i64 slot_stride;
  int num_heads;
  float eps;
};

struct Token {
  float r[CHANNELS], k[CHANNELS], v[CHANNELS], g[CHANNELS], w[CHANNELS];
};

static __device__ __forceinline__ void load_token(Token& x, const Params& p, i64 at) {
  load_own(x.r, p.r + at);
  load_own(x.k, p.k + at);
  load_own(x.v, p.v + at);
  if (p.g) load_own(x.g, p.g + at);
  if (p.w) load_own(x.w, p.w + at);
}

// A token's vectors and output, in shared memory.
struct Shared {
  alignas(16) float decay[SIZE], key[SIZE], r[SIZE], value[SIZE], y[SIZE];
};

// A token's other terms of the output, in the last warp's registers.
struct Kept {
  float value[CHANNELS], gate[CHANNELS], bonus;
};

struct Head {
  float decay[CHANNELS], bonus[CHANNELS], norm_weight[CHANNELS], norm_bias[CHANNELS];
};

static __device__ __forceinline__ void prepare(Shared& to, Kept& kept, const Token& x, const Head& head,
                                               const Params& p) {
  float factor[CHANNELS], products[CHANNELS];
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) {
    factor[i] = p.w ? __expf(-__expf(head.decay[i] + x.w[i])) : head.decay[i];
    products[i] = x.r[i] * head.bonus[i] * x.k[i];
    kept.value[i] = x.v[i];
    kept.gate[i] = p.g ? x.g[i] * sigmoid(x.g[i]) : 1.0f;
  }
  kept.bonus = sum_own(products);
  put_own(to.decay, factor);
  put_own(to.key, x.k);
  put_own(to.r, x.r);
  put_own(to.value, x.v);
}

static __device__ __forceinline__ void advance(float (&state)[ROWS][COLUMNS], Shared& x, int position, int first_row) {
  float decay[ROWS], key[ROWS], r[ROWS], value[COLUMNS], y[COLUMNS];
  load_rows(r, x.r);
  read_out(y, r, state);
  if (own_lane() == 0) store(x.y + own_column(), y);
  load_rows(decay, x.decay);
  load_rows(key, x.key);
  load(value, x.value + own_column());
#pragma unroll
  for (int j = 0; j < ROWS; ++j)
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) state[j][c] = fmaf(state[j][c], decay[j], key[j] * value[c]);
  round_state(state, static_cast<STATE*>(nullptr), position, first_row);
}

static __device__ __forceinline__ void finish(const Shared& x, const Kept& kept, const Head& head, DTYPE* out,
                                              float eps) {
  float y[CHANNELS];
  load_own(y, x.y);
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) y[i] += kept.bonus * kept.value[i];
  head_norm(y, head.norm_weight, head.norm_bias, eps);
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) y[i] *= kept.gate[i];
  put_out(out, y);
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) wkv56(const Params p) {
  __shared__ Shared shared[2];
  const int row = blockIdx.x / p.num_heads, i_head = blockIdx.x % p.num_heads;
  const int slot = p.rows.slot[row], start = p.rows.start[row], length = p.rows.start[row + 1] - start;
  const i64 width = (i64)p.num_heads * SIZE;
  const int first = i_head * SIZE;
  i64 at = start * width + first;
  if (slot < 0) return write_zeros(p.out, at, length, width);

  if (threadIdx.x < STATE_THREADS) {
    STATE* record = p.state + slot * p.slot_stride + (i64)first * SIZE;
    const int position = sizeof(STATE) == 2 ? p.rows.position[row] : 0;
    float state[ROWS][COLUMNS];
    load_state(state, record);
    __syncthreads();
    for (int t = 0; t < length; ++t) {
      advance(state, shared[t % 2], position + t, first);
      __syncthreads();
    }
    store_state(record, state);
    return;
  }
  Token token;
  Head head;
  Kept kept, before;
  load_token(token, p, at);
  load_own(head.decay, p.decay + first);
  load_own(head.bonus, p.bonus + first);
  load_own(head.norm_weight, p.norm_weight + first);
  load_own(head.norm_bias, p.norm_bias + first);
  prepare(shared[0], kept, token, head, p);
  __syncthreads();
  // The other warps advance the state by token t meanwhile. A barrier counts warps, whichever line they wait at: this
  // loop has as many as the loop above.
  for (int t = 0; t < length; ++t, at += width) {
    const bool has_next = t + 1 < length;
    if (has_next) load_token(token, p, at + width);
    if (t > 0) finish(shared[(t + 1) % 2], before, head, p.out + at - width, p.eps);
    before = kept;
    if (has_next) prepare(shared[(t + 1) % 2], kept, token, head, p);
    __syncthreads();
  }
  finish(shared[(length + 1) % 2], before, head, p.out + at - width, p.eps);
}
