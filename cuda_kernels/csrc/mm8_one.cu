// Few tokens times 8-bit weights: the weights are streamed once for TOKENS of them, and all arithmetic is float32.
// A warp has ROWS rows of the weights; its lanes divide the terms of each sum. Compiled with DTYPE, that of the result;
// INPUT=float; TOKENS; and PACK, 4 where K is a multiple of 4, else 1.
#include "mm8.h"

constexpr int WARPS = 4, ROWS = 2, DEPTH = 32 * PACK;  // DEPTH: numbers of a row that a warp takes at once

static __device__ __forceinline__ void load_weights(float (&x)[PACK], const int8* from) {
#if PACK == 4
  const u32 four = *reinterpret_cast<const u32*>(from) ^ 0x80808080u;
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = flipped_to_float(four, i);
#else
  x[0] = (float)*from;
#endif
}

// Grid [N / (WARPS * ROWS), M / TOKENS].
extern "C" __global__ void __launch_bounds__(32 * WARPS) mm8_one(const Params p) {
  const int lane = threadIdx.x % 32, first_row = (blockIdx.x * WARPS + threadIdx.x / 32) * ROWS;
  const int first_token = blockIdx.y * TOKENS;
  if (first_row >= p.rows) return;
  float sums[TOKENS][ROWS];
#pragma unroll
  for (int m = 0; m < TOKENS; ++m)
#pragma unroll
    for (int n = 0; n < ROWS; ++n) sums[m][n] = 0.0f;
#pragma unroll 4
  for (int k = lane * PACK; k < p.depth; k += DEPTH) {
    float weights[ROWS][PACK];
#pragma unroll
    for (int n = 0; n < ROWS; ++n)
      load_weights(weights[n], p.centred + (i64)min(first_row + n, p.rows - 1) * p.depth + k);
#pragma unroll
    for (int m = 0; m < TOKENS; ++m) {
      float inputs[PACK];
      load(inputs, p.inputs + (i64)min(first_token + m, p.num_tokens - 1) * p.depth + k);
#pragma unroll
      for (int n = 0; n < ROWS; ++n)
#pragma unroll
        for (int i = 0; i < PACK; ++i) sums[m][n] = fmaf(inputs[i], weights[n][i], sums[m][n]);
    }
  }
#pragma unroll
  for (int m = 0; m < TOKENS; ++m)
#pragma unroll
    for (int n = 0; n < ROWS; ++n) {
      const float sum = sum_warp(sums[m][n]);
      const int token = first_token + m, row = first_row + n;
      if (lane == m * ROWS + n && token < p.num_tokens && row < p.rows)
        assign(p.out[(i64)token * p.rows + row], finish(sum, load_row(p, row), load_token(p, token)));
    }
}
