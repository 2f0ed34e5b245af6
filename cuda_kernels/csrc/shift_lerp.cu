// Layer norm, token shift and interpolations in one launch. Compiled with DTYPE; PACK, the numbers that a thread loads
// at once (width, strides and addresses are multiples of it); and PARTS, the number of such loads.
//
// Only the block of a row's first token reads and writes the row's slot, so that the order of blocks does not matter.
// It reads the previous token's norm from the slot, and writes the norm of the row's last token, which it computes
// itself. All other blocks compute the norm of the token before theirs.
#include "common.h"

struct Params {
  const DTYPE *x, *weight, *bias, *mix;   // [M, C], [C], [C], [num_mixes, C]
  DTYPE *shift, *normed, *delta, *mixed;  // slot s at + s * slot_stride; [M, C], [M, C] or null; [num_mixes, M, C]
  const int *slot, *start, *token_rows;   // [B], [B + 1], [M]; the last two null where every row has one token
  i64 slot_stride, num_tokens;
  int width, num_mixes;
};

constexpr float EPS = 1e-5f;
constexpr int MAX_WARPS = 8;

static __device__ __forceinline__ int own_channel(int part) { return (int)(part * blockDim.x + threadIdx.x) * PACK; }

// Sums of two numbers over the block, in an order that depends on the number of threads alone.
static __device__ __forceinline__ void sum_block(float (&x)[2], float (&partial)[MAX_WARPS][2]) {
  const int warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
#pragma unroll
  for (int i = 0; i < 2; ++i) x[i] = sum_warp(x[i]);
  __syncthreads();  // all threads have read `partial` of the call before
  if (threadIdx.x % 32 == 0)
#pragma unroll
    for (int i = 0; i < 2; ++i) partial[warp][i] = x[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    x[i] = 0.0f;
    for (int j = 0; j < num_warps; ++j) x[i] += partial[j][i];
  }
}

static __device__ __forceinline__ void load_token(float (&x)[PARTS][PACK], const DTYPE* from, int width) {
#pragma unroll
  for (int part = 0; part < PARTS; ++part)
    if (own_channel(part) < width) load(x[part], from + own_channel(part));
}

// This thread's share of the sum of (x - centre), or of its square.
static __device__ __forceinline__ float share(const float (&x)[PARTS][PACK], float centre, bool squared, int width) {
  float sum = 0.0f;
#pragma unroll
  for (int part = 0; part < PARTS; ++part)
    if (own_channel(part) < width)
#pragma unroll
      for (int i = 0; i < PACK; ++i) {
        const float d = x[part][i] - centre;
        sum += squared ? d * d : d;
      }
  return sum;
}

static __device__ __forceinline__ float rounded(float x) {
  DTYPE y;
  assign(y, x);
  return to_float(y);
}

// Grid [M].
extern "C" __global__ void __launch_bounds__(32 * MAX_WARPS) shift_lerp(const Params p) {
  __shared__ float partial[MAX_WARPS][2];
  const int token = blockIdx.x, row = p.token_rows ? p.token_rows[token] : token;
  const bool is_decode = p.token_rows == nullptr, is_first = is_decode || p.start[row] == token;
  const int other = (is_decode ? token + 1 : is_first ? p.start[row + 1] : token) - 1;
  const int slot = p.slot[row], width = p.width;
  const bool touches = is_first && slot >= 0;
  DTYPE* record = p.shift + (touches ? slot * p.slot_stride : 0);

  float x[2][PARTS][PACK], sums[2], mean[2], scale[2];
  load_token(x[0], p.x + (i64)token * width, width);
  load_token(x[1], p.x + (i64)other * width, width);
#pragma unroll
  for (int i = 0; i < 2; ++i) sums[i] = share(x[i], 0.0f, false, width);
  sum_block(sums, partial);
#pragma unroll
  for (int i = 0; i < 2; ++i) mean[i] = sums[i] / width;
#pragma unroll
  for (int i = 0; i < 2; ++i) sums[i] = share(x[i], mean[i], true, width);
  sum_block(sums, partial);
#pragma unroll
  for (int i = 0; i < 2; ++i) scale[i] = 1.0f / sqrtf(sums[i] / width + EPS);

#pragma unroll
  for (int part = 0; part < PARTS; ++part) {
    const int channel = own_channel(part);
    if (channel >= width) continue;
    float weight[PACK], bias[PACK], z[PACK], other_z[PACK], delta[PACK], y[PACK];
    load(weight, p.weight + channel);
    load(bias, p.bias + channel);
#pragma unroll
    for (int i = 0; i < PACK; ++i) {
      z[i] = rounded((x[0][part][i] - mean[0]) * scale[0] * weight[i] + bias[i]);
      other_z[i] = rounded((x[1][part][i] - mean[1]) * scale[1] * weight[i] + bias[i]);
      delta[i] = is_first ? 0.0f : other_z[i];  // the previous token
    }
    if (touches) {
      load(delta, record + channel);
      store(record + channel, other_z);
    }
#pragma unroll
    for (int i = 0; i < PACK; ++i) delta[i] = rounded(delta[i] - z[i]);
    i64 at = (i64)token * width + channel;
    if (p.normed) {
      store(p.normed + at, z);
      store(p.delta + at, delta);
    }
    for (int j = 0; j < p.num_mixes; ++j, at += p.num_tokens * width) {
      load(y, p.mix + (i64)j * width + channel);
#pragma unroll
      for (int i = 0; i < PACK; ++i) y[i] = fmaf(delta[i], y[i], z[i]);
      store(p.mixed + at, y);
    }
  }
}
