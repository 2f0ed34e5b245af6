// RWKV-4: a scalar recurrence per channel, in the log domain. A thread takes one channel of one row through its tokens.
#include "common.h"

struct Params {
  const DTYPE *r, *k, *v;      // [M, A]
  const float *decay, *bonus;  // [A]
  float *aa, *bb, *pp;         // slot s at + s * slot_stride, [A]
  DTYPE* out;                  // [M, A]
  const int *slot, *start;     // [B], [B + 1]
  i64 slot_stride;
  int width;
};

// Grid [B, A / blockDim.x], which starts with the last rows: prompts stand behind rows of one token, and take longest.
extern "C" __global__ void __launch_bounds__(128) wkv4(const Params p) {
  const int row = gridDim.x - 1 - blockIdx.x, channel = blockIdx.y * blockDim.x + threadIdx.x;
  if (channel >= p.width) return;
  const int slot = p.slot[row], start = p.start[row], length = p.start[row + 1] - start;
  i64 at = (i64)start * p.width + channel;
  if (slot < 0) {
    for (int t = 0; t < length; ++t, at += p.width) assign(p.out[at], 0.0f);
    return;
  }
  const i64 record = slot * p.slot_stride + channel;
  float a = p.aa[record], b = p.bb[record], exponent = p.pp[record];
  const float decay = p.decay[channel], bonus = p.bonus[channel];
  if (length == 0) return;
  float next_r = to_float(p.r[at]), next_k = to_float(p.k[at]), next_v = to_float(p.v[at]);
  for (int t = 0; t < length; ++t, at += p.width) {
    const float r = next_r, k = next_k, v = next_v;
    if (t + 1 < length) {
      next_r = to_float(p.r[at + p.width]);
      next_k = to_float(p.k[at + p.width]);
      next_v = to_float(p.v[at + p.width]);
    }
    const float boosted = bonus + k;
    float q = fmaxf(exponent, boosted);
    float past = __expf(exponent - q), now = __expf(boosted - q);
    assign(p.out[at], sigmoid(r) * (fmaf(past, a, now * v) / fmaf(past, b, now)));
    q = fmaxf(exponent + decay, k);
    past = __expf(exponent + decay - q);
    now = __expf(k - q);
    a = fmaf(past, a, now * v);
    b = fmaf(past, b, now);
    exponent = q;
  }
  p.aa[record] = a;
  p.bb[record] = b;
  p.pp[record] = exponent;
}
