// Many tokens times 8-bit weights, on tensor cores of compute capability 8.0 and later. The weights are the first
// operand: integers up to 128, which bfloat16 and float16 hold exactly. K is a multiple of 16.
//
// Compiled with DTYPE and INPUT, both bf16 or both f16; TOKENS of a block's tile, a multiple of 8; TILES, groups
// of 16 rows of the weights that a warp has; and STAGES, slices of DEPTH in flight or in use.
//
// The order of a sum's terms is free if it is the same in both operands: of each 64, a lane has 16 adjacent ones.
#include "mm8.h"

constexpr int WARPS = 4, THREADS = 32 * WARPS, BLOCK_ROWS = 16 * TILES * WARPS, DEPTH = 64;
constexpr int PITCH = DEPTH + 8;  // of the inputs in shared memory: no two lines that are read together share a bank

struct Slice {
  alignas(16) int8 weights[BLOCK_ROWS][DEPTH];
  alignas(16) INPUT inputs[TOKENS][PITCH];
};

// Starts copying a slice; zeros beyond the ends.
static __device__ __forceinline__ void copy_slice(Slice& to, const Params& p, int first_row, int first_token,
                                                  int start) {
  constexpr int WEIGHT_PACK = 16, INPUT_PACK = 8;  // numbers in 16 bytes
#pragma unroll
  for (int i = threadIdx.x; i < BLOCK_ROWS * (DEPTH / WEIGHT_PACK); i += THREADS) {
    const int row = i / (DEPTH / WEIGHT_PACK), k = i % (DEPTH / WEIGHT_PACK) * WEIGHT_PACK;
    const bool is_valid = first_row + row < p.rows && start + k < p.depth;
    const i64 at = is_valid ? (i64)(first_row + row) * p.depth + start + k : 0;
    copy_async(&to.weights[row][k], p.centred + at, is_valid);
  }
#pragma unroll
  for (int i = threadIdx.x; i < TOKENS * (DEPTH / INPUT_PACK); i += THREADS) {
    const int token = i / (DEPTH / INPUT_PACK), k = i % (DEPTH / INPUT_PACK) * INPUT_PACK;
    const bool is_valid = first_token + token < p.num_tokens && start + k < p.depth;
    const i64 at = is_valid ? (i64)(first_token + token) * p.depth + start + k : 0;
    copy_async(&to.inputs[token][k], p.inputs + at, is_valid);
  }
  commit_copies();
}

// Bytes 2 * i and 2 * i + 1 of four, signs flipped, as a pair of floats of 16 bits.
static __device__ __forceinline__ u32 pair(u32 four, int i) {
  const float first = flipped_to_float(four, 2 * i), second = flipped_to_float(four, 2 * i + 1);
  if (IsHalf<INPUT>::value) return (u32)float_to_half(first) | (u32)float_to_half(second) << 16;
  return __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x7632);  // no bits are lost
}

static __device__ __forceinline__ void multiply_slice(float (&sums)[TILES][TOKENS / 8][4], const Slice& x) {
  const int group = threadIdx.x % 32 / 4, in_group = threadIdx.x % 4, first_row = threadIdx.x / 32 * 16 * TILES;
  u32 a[TILES][4][4];
#pragma unroll
  for (int i = 0; i < TILES; ++i)
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const Pack<u32, 4> bytes =
          *reinterpret_cast<const Pack<u32, 4>*>(&x.weights[first_row + 16 * i + 8 * lower + group][16 * in_group]);
#pragma unroll
      for (int step = 0; step < 4; ++step)
#pragma unroll
        for (int part = 0; part < 2; ++part) a[i][step][2 * part + lower] = pair(bytes.at[step] ^ 0x80808080u, part);
    }
#pragma unroll
  for (int j = 0; j < TOKENS / 8; ++j) {
    Pack<u32, 4> b[2];
#pragma unroll
    for (int part = 0; part < 2; ++part)
      b[part] = *reinterpret_cast<const Pack<u32, 4>*>(&x.inputs[8 * j + group][16 * in_group + 8 * part]);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const u32 pairs[2] = {b[step / 2].at[step % 2 * 2], b[step / 2].at[step % 2 * 2 + 1]};
#pragma unroll
      for (int i = 0; i < TILES; ++i) multiply_16x8x16(sums[i][j], a[i][step], pairs, IsHalf<INPUT>::value);
    }
  }
}

// Grid [N / BLOCK_ROWS, M / TOKENS].
extern "C" __global__ void __launch_bounds__(THREADS) mm8_seq(const Params p) {
  __shared__ Slice slices[STAGES];
  const int first_row = blockIdx.x * BLOCK_ROWS, first_token = blockIdx.y * TOKENS;
  const int num_slices = (p.depth + DEPTH - 1) / DEPTH;
  float sums[TILES][TOKENS / 8][4];
#pragma unroll
  for (int i = 0; i < TILES; ++i)
#pragma unroll
    for (int j = 0; j < TOKENS / 8; ++j)
#pragma unroll
      for (int part = 0; part < 4; ++part) sums[i][j][part] = 0.0f;
#pragma unroll
  for (int i = 0; i < STAGES - 1; ++i) copy_slice(slices[i], p, first_row, first_token, i * DEPTH);
  for (int i = 0; i < num_slices; ++i) {
    wait_for_copies<STAGES - 2>();
    __syncthreads();  // slice i has arrived, and all threads have used slice i - 1
    copy_slice(slices[(i + STAGES - 1) % STAGES], p, first_row, first_token, (i + STAGES - 1) * DEPTH);
    multiply_slice(sums, slices[i % STAGES]);
  }
  const int lane = threadIdx.x % 32;
  const int own_row = first_row + threadIdx.x / 32 * 16 * TILES + lane / 4, own_token = first_token + 2 * (lane % 4);
  RowTerms of_row[TILES][2];
#pragma unroll
  for (int i = 0; i < TILES; ++i)
#pragma unroll
    for (int lower = 0; lower < 2; ++lower)
      of_row[i][lower] = load_row(p, min(own_row + 16 * i + 8 * lower, p.rows - 1));
#pragma unroll
  for (int j = 0; j < TOKENS / 8; ++j)
#pragma unroll
    for (int right = 0; right < 2; ++right) {
      const int token = own_token + 8 * j + right;
      if (token >= p.num_tokens) continue;
      const TokenTerms of_token = load_token(p, token);
#pragma unroll
      for (int i = 0; i < TILES; ++i)
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
          const int row = own_row + 16 * i + 8 * lower;
          if (row < p.rows)
            assign(p.out[(i64)token * p.rows + row], finish(sums[i][j][2 * lower + right], of_row[i][lower], of_token));
        }
    }
}
