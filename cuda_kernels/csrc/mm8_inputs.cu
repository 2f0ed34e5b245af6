// The numbers of each token for a product with 8-bit weights: its inputs z = x * ry, scaled and centred, and five sums.
// A block takes one token. Compiled with DTYPE, that of x, and INPUT, that of the inputs.
#include "common.h"

struct Params {
  const DTYPE* x;        // [M, K]
  const float *my, *ry;  // [K]
  INPUT* inputs;         // [M, K]: z / unit - mean, rounded
  float* sums;           // [M, 5]: u, the mean of z / unit less the inputs; sums of z, x and x * my over unit; unit
  int depth;
};

constexpr int THREADS = 256, WARPS = THREADS / 32;

struct Shared {
  float partial[WARPS][4];
};

// Sums of three numbers over the block and the maximum of a fourth.
static __device__ __forceinline__ void reduce_block(float (&x)[4], Shared& shared) {
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = i < 3 ? sum_warp(x[i]) : max_warp(x[i]);
  if (threadIdx.x % 32 == 0)
#pragma unroll
    for (int i = 0; i < 4; ++i) shared.partial[threadIdx.x / 32][i] = x[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[i] = 0.0f;
    for (int j = 0; j < WARPS; ++j) x[i] = i < 3 ? x[i] + shared.partial[j][i] : fmaxf(x[i], shared.partial[j][i]);
  }
}

// The smallest power of two above x > 0; 1 for 0.
static __device__ __forceinline__ float power_of_two_above(float x) {
  return x == 0.0f ? 1.0f : __uint_as_float(((__float_as_uint(x) >> 23) + 1) << 23);
}

// Grid [M].
extern "C" __global__ void __launch_bounds__(THREADS) mm8_inputs(const Params p) {
  __shared__ Shared shared[2];
  const DTYPE* x = p.x + (i64)blockIdx.x * p.depth;
  INPUT* inputs = p.inputs + (i64)blockIdx.x * p.depth;
  float totals[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int k = threadIdx.x; k < p.depth; k += THREADS) {
    const float exact = to_float(x[k]), z = exact * p.ry[k];
    totals[0] += z;
    totals[1] += exact;
    totals[2] += exact * p.my[k];
    totals[3] = fmaxf(totals[3], fabsf(z));
  }
  reduce_block(totals, shared[0]);
  const float unit = power_of_two_above(totals[3] * (p.depth / 128.0f)), per_unit = 1.0f / unit;
  const float mean = totals[0] * per_unit / p.depth;
  float lacking[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int k = threadIdx.x; k < p.depth; k += THREADS) {
    const float z = to_float(x[k]) * p.ry[k] * per_unit;
    INPUT input;
    assign(input, z - mean);
    inputs[k] = input;
    lacking[0] += z - to_float(input);
  }
  reduce_block(lacking, shared[1]);
  if (threadIdx.x < 5) {
    const float sums[5] = {lacking[0] / p.depth, totals[0] * per_unit, totals[1] * per_unit, totals[2] * per_unit,
                           unit};
    p.sums[(i64)blockIdx.x * 5 + threadIdx.x] = sums[threadIdx.x];
  }
}
