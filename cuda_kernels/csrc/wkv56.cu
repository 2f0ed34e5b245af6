// RWKV-5 and 6: y = r (S + diag(u) k^T v), S <- diag(w) S + k^T v, then group norm and, but for 5.0, a SiLU gate.
// v5's decay is one factor per key channel; v6's is exp(-exp(d + w)) per token.
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

struct Recurrence {
  using Params = ::Params;
  struct Token {
    DTYPE r[CHANNELS], k[CHANNELS], v[CHANNELS], g[CHANNELS], w[CHANNELS];
  };
  struct Head {
    float decay[CHANNELS], bonus[CHANNELS], norm_weight[CHANNELS], norm_bias[CHANNELS];
  };
  struct Vectors {
    float decay[SIZE], key[SIZE], r[SIZE], value[SIZE];
  };
  struct Kept {
    float value[CHANNELS], gate[CHANNELS], bonus;
  };

  static __device__ __forceinline__ void load(Token& x, const Params& p, i64 at) {
    load_own(x.r, p.r + at);
    load_own(x.k, p.k + at);
    load_own(x.v, p.v + at);
    if (p.g) load_own(x.g, p.g + at);
    if (p.w) load_own(x.w, p.w + at);
  }

  static __device__ __forceinline__ void load(Head& head, const Params& p, int first) {
    load_own(head.decay, p.decay + first);
    load_own(head.bonus, p.bonus + first);
    load_own(head.norm_weight, p.norm_weight + first);
    load_own(head.norm_bias, p.norm_bias + first);
  }

  static __device__ __forceinline__ void begin(Vectors& to, Kept&, const Token& x, const Head& head, const Params& p) {
    float factor[CHANNELS], key[CHANNELS];
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      factor[i] = p.w ? __expf(-__expf(head.decay[i] + to_float(x.w[i]))) : head.decay[i];
      key[i] = to_float(x.k[i]);
    }
    put_own(to.decay, factor);
    put_own(to.key, key);
  }

  static __device__ __forceinline__ void complete(Vectors& to, Kept& kept, const Token& x, const Head& head,
                                                  const Params& p) {
    float r[CHANNELS], products[CHANNELS];
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
      r[i] = to_float(x.r[i]);
      products[i] = r[i] * head.bonus[i] * to_float(x.k[i]);
      kept.value[i] = to_float(x.v[i]);
      kept.gate[i] = p.g ? to_float(x.g[i]) * sigmoid(to_float(x.g[i])) : 1.0f;
    }
    kept.bonus = sum_own(products);
    put_own(to.r, r);
    put_own(to.value, kept.value);
  }

  static __device__ __forceinline__ void advance(float (&state)[ROWS][COLUMNS], float (&y)[COLUMNS], const Vectors& x) {
    float decay[ROWS], key[ROWS], r[ROWS], value[COLUMNS];
    load_rows(r, x.r);
    read_out(y, r, state);
    if (sizeof(STATE) == 2) __syncwarp();  // what comes next is not moved before it, where it would take registers
    load_rows(decay, x.decay);
    load_rows(key, x.key);
    ::load(value, x.value + own_column());
#pragma unroll
    for (int j = 0; j < ROWS; ++j)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) state[j][c] = fmaf(state[j][c], decay[j], key[j] * value[c]);
  }

  static __device__ __forceinline__ void before_norm(float (&y)[CHANNELS], const Kept& kept) {
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) y[i] += kept.bonus * kept.value[i];
  }
  static __device__ __forceinline__ void after_norm(float (&y)[CHANNELS], const Kept& kept) {
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) y[i] *= kept.gate[i];
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) wkv56(const Params p) { run_head<Recurrence>(p); }
