// One head's state [K, V] in the registers of a block, and what recurrences over it share.
//
// Compiled with SIZE, the head size N; DTYPE, that of the vectors; STATE, that of the state.
//
// STATE_THREADS threads hold the state: each has COLUMNS adjacent columns of every LANES-th group of four rows. The
// lanes of one column are adjacent in a warp: sums over K are shuffles, and a warp reads whole sectors of memory.
// HELPERS more warps prepare the vectors of the next tokens and finish the outputs of the last ones meanwhile, CHANNELS
// to a lane; see run_head. This layout orders the sums, and depends on SIZE only.
#pragma once
#include "common.h"

constexpr int LANES = SIZE == 16 ? 4 : 8;
constexpr int COLUMNS = SIZE == 16 ? 2 : 4;
constexpr int ROWS = SIZE / LANES;
constexpr int HELPERS = 4;  // one beside each of the four warps of a state of heads of 64
constexpr int STATE_THREADS = LANES * (SIZE / COLUMNS), THREADS = STATE_THREADS + 32 * HELPERS;
constexpr int MIN_BLOCKS = SIZE <= 64 ? 3 : 1;  // blocks of a multiprocessor for which no register spills
constexpr int CHANNELS = (SIZE + 31) / 32;
static_assert(ROWS % 4 == 0 && STATE_THREADS % 32 == 0, "SIZE is 16, 32, 64 or 128");

struct Rows {
  const int *slot, *start, *position;  // [B], [B + 1], [B]; slot -1 is padding
};

// The i-th channel of this lane of a helper. SIZE or more stands for no channel.
static __device__ __forceinline__ int own_channel(int i) { return (int)threadIdx.x % 32 + 32 * i; }

// One number for each of a lane's channels, at `from` the first of the head; zero where there is no such channel.
template <typename T>
static __device__ __forceinline__ void load_own(T (&x)[CHANNELS], const T* from) {
  from += own_channel(0);
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) x[i] = own_channel(i) < SIZE ? from[32 * i] : T{};
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
static __device__ __forceinline__ int own_row(int j) { return own_lane() * 4 + j / 4 * LANES * 4 + j % 4; }

// One address, and offsets that are known when the kernel is compiled.
static __device__ __forceinline__ void load_state(float (&state)[ROWS][COLUMNS], const STATE* head) {
  head += own_row(0) * SIZE + own_column();
#pragma unroll
  for (int j = 0; j < ROWS; ++j) load(state[j], head + (j / 4 * LANES * 4 + j % 4) * SIZE);
}
static __device__ __forceinline__ void store_state(STATE* head, const float (&state)[ROWS][COLUMNS]) {
  head += own_row(0) * SIZE + own_column();
#pragma unroll
  for (int j = 0; j < ROWS; ++j) store(head + (j / 4 * LANES * 4 + j % 4) * SIZE, state[j]);
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

// For each column, the sum over this thread's rows of x * state.
static __device__ __forceinline__ void read_out(float (&sum)[COLUMNS], const float (&x)[ROWS],
                                                const float (&state)[ROWS][COLUMNS]) {
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    sum[c] = 0.0f;
#pragma unroll
    for (int j = 0; j < ROWS; ++j) sum[c] = fmaf(x[j], state[j][c], sum[c]);
  }
}

// For each column, the sum over K: of the lanes' sums over their rows. Every lane gets it.
static __device__ __forceinline__ void sum_columns(float (&sum)[COLUMNS]) {
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) sum[c] = sum_lanes<1, LANES>(sum[c]);
}

// The same sum of one column, summed_column(): each exchange halves the columns that are left to a lane.
static __device__ __forceinline__ float sum_column(float (&sum)[COLUMNS]) {
#pragma unroll
  for (int bit = 1, left = COLUMNS; bit < LANES; bit *= 2) {
    if (left == 1) {
      sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], bit);
      continue;
    }
    left /= 2;
    const bool is_upper = own_lane() & bit;
#pragma unroll
    for (int c = 0; c < left; ++c) {
      const float kept = is_upper ? sum[c + left] : sum[c], given = is_upper ? sum[c] : sum[c + left];
      sum[c] = kept + __shfl_xor_sync(0xffffffffu, given, bit);
    }
  }
  return sum[0];
}
static __device__ __forceinline__ int summed_column() {
  const int lane = own_lane();
  return own_column() + (COLUMNS == 4 ? lane % 2 * 2 + lane / 2 % 2 : lane % 2);
}

// Group norm of a head's read-out: centre, then scale.
static __device__ __forceinline__ void centre(float (&y)[CHANNELS]) {
  const float mean = sum_own(y) / SIZE;
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) y[i] -= mean;
}
static __device__ __forceinline__ void scale(float (&y)[CHANNELS], const float (&weight)[CHANNELS],
                                             const float (&bias)[CHANNELS], float eps) {
  float squares[CHANNELS];
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) squares[i] = y[i] * y[i];
  const float factor = rsqrtf(sum_own(squares) / SIZE + eps);
#pragma unroll
  for (int i = 0; i < CHANNELS; ++i) y[i] = y[i] * factor * weight[i] + bias[i];
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

// Takes one head of one row through the row's tokens. `Recurrence` has these members.
//   Params: of the kernel, with state, out, rows, slot_stride, num_heads.
//   Token: a token's inputs. load(Token&, params, at) loads them at an offset.
//   Head: the head's parameters. load(Head&, params, first) loads them at its first channel.
//   Vectors: a token's prepared vectors, in shared memory.
//   Kept: a token's other terms of the output, in a helper's registers.
//   begin(Vectors&, Kept&, token, head, params), complete(the same): prepare a token, in two parts.
//   advance(state, y, vectors): advances the state by a token, and sums its read-out over a thread's rows.
//   before_norm(y, kept), after_norm(y, kept): what is added to the output or multiplied with it.
//   Ring: updates that a row's state in the pool lacks; NoRing where it lacks none. The threads that hold the state
//     call fetch(), which reads them; after a barrier apply(state, position, first), which brings the state up to date;
//     and add(vectors), which adds the row's only token, or returns false where the state is to be written.
//
// The warps pass length + 1 barriers. Each helper has every HELPERS-th token, and a place in shared memory for its
// vectors and its read-out. Its work for a token has four parts of about the same length, so that in each interval
// between barriers each of the HELPERS does another part, of another token:
//   before barrier t - 2  the helper begins to prepare token t;
//   before barrier t - 1  it completes that;
//   before barrier t + 1  the other warps advance the state by token t,
//   before barrier t + 2  and sum its read-out over their lanes, if the state is not rounded, while they advance the
//                         state by the token after;
//   before barrier t + 4  the helper starts to load token t + 2 * HELPERS, and centres the output of token t,
//   before barrier t + 5  and scales and stores it.
struct NoRing {
  template <typename Params>
  __device__ __forceinline__ NoRing(const Params&, int row, int slot, int i_head) {}
  __device__ __forceinline__ void fetch() const {}
  __device__ __forceinline__ void apply(float (&)[ROWS][COLUMNS], int position, int first) const {}
  template <typename Vectors>
  __device__ __forceinline__ bool add(const Vectors&) const {
    return false;
  }
};

template <typename Recurrence>
static __device__ __forceinline__ void run_head(const typename Recurrence::Params& p) {
  struct Place {
    alignas(16) typename Recurrence::Vectors vectors;
    alignas(16) float y[SIZE];
  };
  __shared__ Place places[HELPERS];
  // The grid starts with the last rows: prompts stand behind rows of one token, and take longest.
  const int block = (int)(gridDim.x - 1 - blockIdx.x), row = block / p.num_heads;
  const int slot = p.rows.slot[row], start = p.rows.start[row], length = p.rows.start[row + 1] - start;
  const i64 width = (i64)p.num_heads * SIZE;
  const int first = block % p.num_heads * SIZE;
  i64 at = start * width + first;
  if (slot < 0 || length == 0) return write_zeros(p.out, at, length, width);

  // By the exchange the compiler knows that a warp's lanes have one number, and so take the same branches.
  const int warp = __shfl_sync(0xffffffffu, (int)threadIdx.x / 32, 0);
  if (warp < STATE_THREADS / 32) {
    STATE* record = p.state + slot * p.slot_stride + (i64)first * SIZE;
    constexpr bool is_rounded = sizeof(STATE) == 2;
    const int position = is_rounded ? p.rows.position[row] : 0;
    float state[ROWS][COLUMNS], sum[COLUMNS] = {}, y;
    load_state(state, record);
    const typename Recurrence::Ring ring(p, row, slot, block % p.num_heads);
    ring.fetch();
    __syncthreads();
    ring.apply(state, position, first);
    u32 current = 0, before = HELPERS - 1;
    for (int at_token = position; at_token < position + length; ++at_token) {
      if (at_token > position) __syncthreads();
      if (!is_rounded) y = sum_column(sum);  // of the token before; before token 0, of none
      Recurrence::advance(state, sum, places[current].vectors);
      if (is_rounded) y = sum_column(sum);  // at once, as the rounding takes longer, and needs registers
      round_state(state, static_cast<STATE*>(nullptr), at_token, first);
      places[is_rounded ? current : before].y[summed_column()] = y;
      before = current;
      current = (current + 1) % HELPERS;
    }
    if (!is_rounded) places[before].y[summed_column()] = sum_column(sum);
    __syncthreads();
    if (!ring.add(places[0].vectors)) store_state(record, state);
    return;
  }
  const int helper = warp - STATE_THREADS / 32;
  Place& place = places[helper];
  typename Recurrence::Token token;
  typename Recurrence::Head head;
  typename Recurrence::Kept kept = {}, before = {};
  float y[CHANNELS] = {};
  at += helper * width;
  if (helper < length) Recurrence::load(token, p, at);
  Recurrence::load(head, p, first);
  for (int t = 0; t < length + 7; ++t) {  // the next barrier is t - 2
    const int part = t < helper ? HELPERS : (t - helper) % HELPERS;
    if (part == 0) {
      if (t < length) Recurrence::begin(place.vectors, kept, token, head, p);
    } else if (part == 1) {
      before = kept;
      if (t - 1 < length) Recurrence::complete(place.vectors, kept, token, head, p);
    } else if (part == 2) {
      at += HELPERS * width;
      if (t - 2 + HELPERS < length) Recurrence::load(token, p, at);
      if (t >= 6) {
        load_own(y, place.y);
        Recurrence::before_norm(y, before);
        centre(y);
      }
    } else if (t >= 7) {
      scale(y, head.norm_weight, head.norm_bias, p.eps);
      Recurrence::after_norm(y, before);
      put_out(p.out + at - 2 * HELPERS * width, y);
    }
    if (t >= 2 && t < length + 3) __syncthreads();  // a barrier counts warps, whichever line they wait at
  }
}
