// RWKV-7, everything per head fused: decay, in-context rate, value residual, state update, read-out, norm, bonus, gate.
// The state is [K, V] with V contiguous, so that every loop over V vectorizes.
#include "common.h"

struct Wkv7 {
  Rows rows;
  int64_t num_heads, size, slot_stride;
  const void *r, *w, *k, *v, *a, *g, *v_first, *v_gate;  // [M, A]; the last two null in layer 0
  const float *w0, *a0, *v0, *k_k, *k_a, *r_k, *norm_weight, *norm_bias;
  float eps;
  float* state;  // slot s, head h at state + s * slot_stride + h * size * size
  void* out;     // [M, A]
};

template <typename T, int SIZE>
static void advance(const Wkv7& p, int64_t token, int64_t head, float* __restrict state, const float* next) {
  const int n = SIZE ? SIZE : (int)p.size;
  const int64_t offset = (token * p.num_heads + head) * n, first = head * n;
  const T *r_ = (const T*)p.r + offset, *w_ = (const T*)p.w + offset, *k_ = (const T*)p.k + offset;
  const T *v_ = (const T*)p.v + offset, *a_ = (const T*)p.a + offset, *g_ = (const T*)p.g + offset;
  const float *w0 = p.w0 + first, *a0 = p.a0 + first, *k_k = p.k_k + first, *k_a = p.k_a + first, *r_k = p.r_k + first;
  alignas(64) float r[MAX_HEAD], decay[MAX_HEAD], key[MAX_HEAD], value[MAX_HEAD], removal[MAX_HEAD], rate[MAX_HEAD];
  alignas(64) float scratch[MAX_HEAD], removed[MAX_HEAD], y[MAX_HEAD];
  for (int i = 0; i < n; ++i) {
    r[i] = to_float(r_[i]);
    decay[i] = fast_exp(-0.60653065971263342f * sigmoid(w0[i] + to_float(w_[i])));
    rate[i] = sigmoid(a0[i] + to_float(a_[i]));
    value[i] = to_float(v_[i]);
    const float raw = to_float(k_[i]);
    removal[i] = raw * k_k[i];
    scratch[i] = removal[i] * removal[i];
    key[i] = raw * (1.0f + (rate[i] - 1.0f) * k_a[i]);
  }
  if (p.v_first) {
    const T *from_first_layer = (const T*)p.v_first + offset, *gate = (const T*)p.v_gate + offset;
    const float* v0 = p.v0 + first;
    for (int i = 0; i < n; ++i)
      value[i] += (to_float(from_first_layer[i]) - value[i]) * sigmoid(v0[i] + to_float(gate[i]));
  }
  const float length = std::sqrt(sum_of(scratch, n));
  const float unit = 1.0f / (length > 1e-12f ? length : 1e-12f);
  for (int i = 0; i < n; ++i) {
    removal[i] *= unit;
    scratch[i] = r[i] * key[i] * r_k[i];
  }
  const float bonus = sum_of(scratch, n);
  for (int v = 0; v < n; ++v) removed[v] = y[v] = 0.0f;
  for (int k = 0; k < n; ++k) {
    const float x = removal[k];
    const float* s = state + k * n;
    for (int v = 0; v < n; ++v) removed[v] += s[v] * x;
  }
  for (int k = 0; k < n; ++k) {
    const float d = decay[k], b = -removal[k] * rate[k], w = key[k], q = r[k];
    float* s = state + k * n;
    prefetch_row(next + k * n, n);
    for (int v = 0; v < n; ++v) {
      const float updated = s[v] * d + (removed[v] * b + value[v] * w);
      s[v] = updated;
      y[v] += updated * q;
    }
  }
  head_norm(y, n, p.norm_weight + first, p.norm_bias + first, p.eps);
  T* out = (T*)p.out + offset;
  for (int i = 0; i < n; ++i) out[i] = from_float<T>((y[i] + bonus * value[i]) * to_float(g_[i]));
}

template <typename T>
static void run(const Wkv7& p) {
  for_each_head<T>(p, [&p](int64_t token, int64_t head, float* state, const float* next) {
    if (p.size == 64) advance<T, 64>(p, token, head, state, next);
    else advance<T, 0>(p, token, head, state, next);
  });
}

#define DEFINE(NAME, T) \
  extern "C" int32_t NAME(const void* p) { return run<T>(*(const Wkv7*)p), 0; }
FOR_EACH_DTYPE(DEFINE, wkv7)
