// What both products with 8-bit weights share.
#pragma once
#include "common.h"

struct Params {
  const INPUT* inputs;            // [M, K]
  const float* sums;              // [M, 5], as of mm8_inputs
  const int8* centred;            // [N, K]
  const float *rx, *corrections;  // [N], [4, N]
  DTYPE* out;                     // [M, N]
  int num_tokens, rows, depth;    // M, N, K
};

// Put one element of the result, from its sum over inputs and weights.
static __device__ __forceinline__ void finish(const Params& p, int token, int row, float product) {
  const float* sums = p.sums + (i64)token * 5;
  float y = product * p.rx[row];
#pragma unroll
  for (int i = 0; i < 4; ++i) y = fmaf(sums[i], p.corrections[(i64)i * p.rows + row], y);
  assign(p.out[(i64)token * p.rows + row], y * sums[4]);
}
