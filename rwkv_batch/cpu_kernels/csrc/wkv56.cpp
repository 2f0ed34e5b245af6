// RWKV-5 and 6: y = r (S + diag(u) k^T v), S <- diag(w) S + k^T v, then group norm and, where there is one, a SiLU
// gate. The state is [K, V] with V contiguous. v5's decay is one factor per key channel; v6's is exp(-exp(d + w)) per
// token.
#include "common.h"

struct Wkv56 {
  Rows rows;
  int64_t num_heads, size, slot_stride;
  const void *r, *k, *v, *g, *w;                         // [M, A]; g null in 5.0, w null in v5
  const float *decay, *bonus, *norm_weight, *norm_bias;  // [H, K], [H, K], [A], [A]
  float eps;
  float* state;
  void* out;
};

template <typename T, int SIZE>
static void advance(const Wkv56& p, int64_t token, int64_t head, float* __restrict state, const float* next) {
  const int n = SIZE ? SIZE : (int)p.size;
  const int64_t offset = (token * p.num_heads + head) * n, first = head * n;
  const T *r_ = (const T*)p.r + offset, *k_ = (const T*)p.k + offset, *v_ = (const T*)p.v + offset;
  alignas(64) float r[MAX_HEAD], key[MAX_HEAD], value[MAX_HEAD], decay[MAX_HEAD], scratch[MAX_HEAD], y[MAX_HEAD];
  for (int i = 0; i < n; ++i) {
    r[i] = to_float(r_[i]);
    key[i] = to_float(k_[i]);
    value[i] = to_float(v_[i]);
    decay[i] = p.decay[first + i];
    scratch[i] = r[i] * p.bonus[first + i] * key[i];
  }
  if (p.w) {
    const T* w = (const T*)p.w + offset;
    for (int i = 0; i < n; ++i) decay[i] = fast_exp(-fast_exp(decay[i] + to_float(w[i])));
  }
  const float bonus = sum_of(scratch, n);
  for (int v = 0; v < n; ++v) y[v] = bonus * value[v];
  for (int k = 0; k < n; ++k) {
    const float d = decay[k], w = key[k], q = r[k];
    float* s = state + k * n;
    prefetch_row(next + k * n, n);
    for (int v = 0; v < n; ++v) {
      y[v] += s[v] * q;
      s[v] = s[v] * d + value[v] * w;
    }
  }
  head_norm(y, n, p.norm_weight + first, p.norm_bias + first, p.eps);
  T* out = (T*)p.out + offset;
  if (p.g) {
    const T* g = (const T*)p.g + offset;
    for (int i = 0; i < n; ++i) y[i] *= to_float(g[i]) * sigmoid(to_float(g[i]));
  }
  for (int i = 0; i < n; ++i) out[i] = from_float<T>(y[i]);
}

template <typename T>
static void run(const Wkv56& p) {
  for_each_head<T>(p, [&p](int64_t token, int64_t head, float* state, const float* next) {
    if (p.size == 64) advance<T, 64>(p, token, head, state, next);
    else advance<T, 0>(p, token, head, state, next);
  });
}

#define DEFINE(NAME, T) \
  extern "C" int32_t NAME(const void* p) { return run<T>(*(const Wkv56*)p), 0; }
FOR_EACH_DTYPE(DEFINE, wkv56)
