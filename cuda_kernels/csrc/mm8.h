// Parts of both products with 8-bit weights.
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

// Numbers that all results of one row of the weights share, and of one token.
struct RowTerms {
  float rx, corrections[4];
};
struct TokenTerms {
  float sums[4], unit;
};

static __device__ __forceinline__ RowTerms load_row(const Params& p, int row) {
  RowTerms x = {p.rx[row], {}};
#pragma unroll
  for (int i = 0; i < 4; ++i) x.corrections[i] = p.corrections[(i64)i * p.rows + row];
  return x;
}
static __device__ __forceinline__ TokenTerms load_token(const Params& p, int token) {
  const float* sums = p.sums + (i64)token * 5;
  return {{sums[0], sums[1], sums[2], sums[3]}, sums[4]};
}

// One number of the result, from its sum over inputs and weights.
static __device__ __forceinline__ float finish(float product, const RowTerms& row, const TokenTerms& token) {
  float y = product * row.rx;
#pragma unroll
  for (int i = 0; i < 4; ++i) y = fmaf(token.sums[i], row.corrections[i], y);
  return y * token.unit;
}
