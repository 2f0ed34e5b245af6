// One head's state [K, V] in the registers of a block, and what recurrences over it share.
//
// Compiled with SIZE, the head size N; DTYPE, that of the vectors; STATE, that of the state.
//
// STATE_THREADS threads hold the state: each has COLUMNS adjacent columns of every LANES-th group of four rows. The
// lanes of one column are adjacent in a warp: sums over K are shuffles, and a warp reads whole sectors of memory. One
// more warp, the last, prepares each token's vectors while the others advance the state by the token before, and then
// finishes the output, CHANNELS to a lane. This layout orders the sums, and depends on SIZE only.
#pragma once
#include "common.h"

constexpr int LANES = SIZE == 16 ? 4 : 8;
constexpr int COLUMNS = SIZE == 16 ? 2 : 4;
constexpr int ROWS = SIZE / LANES;
constexpr int STATE_THREADS = LANES * (SIZE / COLUMNS), THREADS = STATE_THREADS + 32;
constexpr int MIN_BLOCKS = SIZE <= 64 ? 4 : 1;  // blocks of a multiprocessor for which no register spills
constexpr int CHANNELS = (SIZE + 31) / 32;
static_assert(ROWS % 4 == 0 && STATE_THREADS % 32 == 0, "SIZE is 16, 32, 64 or 128");

struct Rows {
  const int *slot, *start, *position;  // [B], [B + 1], [B]; slot -1 is padding
};

// The i-th channel of this lane of the last warp. SIZE or more stands for no channel.
static __device__ __forceinline__ int own_channel(int i) { return (int)threadIdx.x % 32 + 32 * i; }

// One number for each of a lane's channels, at `from` the first of the head; zero where there is no such channel.
template <typename T>
static __device__ __forceinline__ void load_own(float (&x)[CHANNELS], const T* from) {
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) x[i] = own_channel(i) < SIZE ? to_float(from[own_channel(i)]) : 0.0f;
}
static __device__ __forceinline__ void put_own(float* to, const float (&x)[CHANNELS]) {
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i)
    if (own_channel(i) < SIZE) to[own_channel(i)] = x[i];
}
static __device__ __forceinline__ float sum_own(const float (&x)[CHANNELS]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) sum += own_channel(i) < SIZE ? x[i] : 0.0f;
  return sum_warp(sum);
}

static __device__ __forceinline__ int own_lane() { return (int)threadIdx.x % LANES; }
static __device__ __forceinline__ int own_column() { return (int)threadIdx.x / LANES * COLUMNS; }
static __device__ __forceinline__ int own_row(int j) { return (j / 4 * LANES + own_lane()) * 4 + j % 4; }

static __device__ __forceinline__ void load_state(float (&state)[ROWS][COLUMNS], const STATE* head) {
#pragma unroll
  for (int j = 0; j < ROWS; ++j) load(state[j], head + own_row(j) * SIZE + own_column());
}
static __device__ __forceinline__ void store_state(STATE* head, const float (&state)[ROWS][COLUMNS]) {
#pragma unroll
  for (int j = 0; j < ROWS; ++j) store(head + own_row(j) * SIZE + own_column(), state[j]);
}

// The elements of a vector [K] in shared memory for this thread's rows.
static __device__ __forceinline__ void load_rows(float (&x)[ROWS], const float* vector) {
#pragma unroll
  for (int j = 0; j < ROWS; j += 4) {
    float four[4];
    load(four, vector + own_row(j));
#pragma unroll
    for (int i = 0; i < 4; ++i) x[j + i] = four[i];
  }
}

// For each column, the sum over K of x * state.
static __device__ __forceinline__ void read_out(float (&sum)[COLUMNS], const float (&x)[ROWS],
                                                const float (&state)[ROWS][COLUMNS]) {
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    sum[c] = 0.0f;
#pragma unroll
    for (int j = 0; j < ROWS; ++j) sum[c] = fmaf(x[j], state[j][c], sum[c]);
    sum[c] = sum_lanes<1, LANES>(sum[c]);
  }
}

// Group norm of a head's read-out.
static __device__ __forceinline__ void head_norm(float (&y)[CHANNELS], const float (&weight)[CHANNELS],
                                                 const float (&bias)[CHANNELS], float eps) {
  const float mean = sum_own(y) / SIZE;
  float squares[CHANNELS];
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) {
    y[i] -= mean;
    squares[i] = y[i] * y[i];
  }
  const float scale = rsqrtf(sum_own(squares) / SIZE + eps);
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) y[i] = y[i] * scale * weight[i] + bias[i];
}

// Writes the output of a padding row.
static __device__ __forceinline__ void write_zeros(DTYPE* out, i64 at, int length, i64 width) {
  for (int t = 0; t < length; ++t, at += width)
    if (threadIdx.x < SIZE) assign(out[at + threadIdx.x], 0.0f);
}

static __device__ __forceinline__ void put_out(DTYPE* head, const float (&y)[CHANNELS]) {
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i)
    if (own_channel(i) < SIZE) assign(head[own_channel(i)], y[i]);
}

// A float32 state is not rounded.
static __device__ __forceinline__ void round_state(float (&)[ROWS][COLUMNS], const float*, int, int) {}

// See models/rounding.py.
static __device__ __forceinline__ u32 hash_position(u32 position, u32 head) {
  u32 h = position * 0x9E3779B1u + head * 0x85EBCA77u + 0xC2B2AE3Du;
  h = (h ^ (h >> 16)) * 0x7FEB352Du;
  return (h ^ (h >> 15)) * 0x846CA68Bu;
}
static __device__ __forceinline__ u32 spread(u32 place) { return (place * 0x01010101u) ^ (place * 0x02040810u); }

// A float16 state is rounded at random and without bias, bit by bit the same as `round_stochastically` in
// models/rounding.py, which explains it: change both or none. `first_row` is the head's first row in the record.
//
// A thread's rows differ in other bits than the threads' first rows do, and so do its columns: `spread` of a place is
// that of the thread's first place, exclusive or that of the distance from it, which is a constant.
static __device__ __forceinline__ void round_state(float (&state)[ROWS][COLUMNS], const f16*, int position,
                                                   int first_row) {
  const u32 h = hash_position(position, first_row / SIZE);
  const u32 row = (h ^ (h >> 16)) ^ spread(own_row(0)), column = (h * 0x9E3779B1u) ^ spread(own_column());
#pragma unroll
  for (int j = 0; j < ROWS; ++j) {
    const u32 of_row = row ^ spread(own_row(j) - own_row(0));
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      const float x = state[j][c];
      const u32 draw = (of_row * (column ^ spread(c))) >> 19;
      const u32 bits = __float_as_uint(x * 0x1p-112f) + draw;
      // Infinity is right for NaN too: bits of a NaN plus random bits are those of a NaN or, cut off, of zero.
      const float scale = fabsf(x) <= 65504.0f ? 0x1p112f : __uint_as_float(0x7F800000u);
      state[j][c] = __uint_as_float(bits & 0xFFFFE000u) * scale;
    }
  }
}
