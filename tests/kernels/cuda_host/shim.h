// CUDA on a CPU, for tests: included before a kernel's source, it lets g++ compile it.
//
// A thread of a block is a fiber, and all fibers share one host thread. A warp runs until all its lanes wait for a
// barrier; only then the next warp starts. Warps, and lanes within them, go in ascending order up to the first barrier,
// in descending order up to the second, and so on: what one thread writes and another reads without a barrier in
// between is read too early in one of the orders. Shared memory, and what asynchronous copies will write, holds NaN
// before.
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

// <cmath> would take as long to compile as a kernel.
extern "C" float expf(float), sqrtf(float), fmaxf(float, float), fabsf(float), fmaf(float, float, float);

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("block_shared")))
extern char __start_block_shared[] __attribute__((weak)), __stop_block_shared[] __attribute__((weak));

struct Index {
  unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace host {

enum Wait { RUNS, BARRIER, SHUFFLE, PRODUCT, DONE };
constexpr int WARP = 32, MAX_COPIES = 64;
constexpr size_t STACK = 96 << 10;

struct Copy {
  void* to;
  const void* from;
  bool is_valid;
};
struct Fiber {
  ucontext_t context;
  char* stack;
  Wait wait;
  unsigned source, bits, a[4], b[2];  // what it brings to an exchange
  float sums[4];
  Copy copies[MAX_COPIES];
  int num_copies, group_ends[MAX_COPIES], num_groups;
};

static Fiber fibers[1024];
static int current, num_threads;
static ucontext_t scheduler;
static void (*body)(const void*);
static const void* arguments;

[[noreturn]] static void fail(const char* what) {
  fprintf(stderr, "kernel on host: %s, block %u,%u\n", what, blockIdx.x, blockIdx.y);
  exit(3);
}

static inline Fiber& wait(Wait what) {
  Fiber& fiber = fibers[current];
  fiber.wait = what;
  swapcontext(&fiber.context, &scheduler);
  return fiber;
}

static void start() {
  body(arguments);
  fibers[current].wait = DONE;
  swapcontext(&fibers[current].context, &scheduler);
}

static float half_value(unsigned bits) {
  const unsigned short low = (unsigned short)bits;
  _Float16 x;
  memcpy(&x, &low, 2);
  return (float)x;
}
static float bfloat_value(unsigned bits) {
  const unsigned wide = bits << 16;
  float x;
  memcpy(&x, &wide, 4);
  return x;
}

// mma.m16n8k16, as the PTX manual lays its fragments out: sums[16, 8] += a[16, 16] b[16, 8]. `is_half` in `source`.
static void multiply(Fiber* lanes) {
  float a[16][16], b[16][8];
  const bool is_half = lanes[0].source != 0;
  auto value = [is_half](unsigned pair, int i) {
    const unsigned bits = (pair >> (16 * i)) & 0xffff;
    return is_half ? half_value(bits) : bfloat_value(bits);
  };
  for (int lane = 0; lane < WARP; ++lane)
    for (int i = 0; i < 2; ++i) {
      const int group = lane / 4, in_group = lane % 4;
      for (int part = 0; part < 4; ++part)
        a[group + 8 * (part % 2)][2 * in_group + i + 8 * (part / 2)] = value(lanes[lane].a[part], i);
      for (int part = 0; part < 2; ++part) b[2 * in_group + i + 8 * part][group] = value(lanes[lane].b[part], i);
    }
  for (int lane = 0; lane < WARP; ++lane)
    for (int part = 0; part < 4; ++part) {
      const int row = lane / 4 + 8 * (part / 2), column = 2 * (lane % 4) + part % 2;
      for (int k = 0; k < 16; ++k) lanes[lane].sums[part] += a[row][k] * b[k][column];
    }
}

static void exchange(Fiber* lanes, Wait what) {
  if (what == PRODUCT) return multiply(lanes);
  unsigned before[WARP];
  for (int lane = 0; lane < WARP; ++lane) before[lane] = lanes[lane].bits;
  for (int lane = 0; lane < WARP; ++lane) lanes[lane].bits = before[lanes[lane].source];
}

// Until every lane waits for a barrier, or all are done.
static Wait run_warp(int first, bool is_reverse) {
  Fiber* lanes = fibers + first;
  for (;;) {
    for (int i = 0; i < WARP; ++i) {
      const int lane = is_reverse ? WARP - 1 - i : i;
      if (lanes[lane].wait == DONE) continue;
      current = first + lane;
      threadIdx = {(unsigned)current, 0, 0};
      swapcontext(&scheduler, &lanes[lane].context);
    }
    const Wait what = lanes[0].wait;
    for (int lane = 1; lane < WARP; ++lane)
      if (lanes[lane].wait != what) fail("the lanes of a warp wait for different things");
    if (what == BARRIER || what == DONE) return what;
    exchange(lanes, what);
  }
}

static void run_block() {
  for (volatile char* p = __start_block_shared; p < __stop_block_shared; ++p) *p = (char)0xff;
  for (int i = 0; i < num_threads; ++i) {
    Fiber& fiber = fibers[i];
    if (!fiber.stack) fiber.stack = (char*)malloc(STACK);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
    fiber.wait = RUNS;
    fiber.num_copies = fiber.num_groups = 0;
  }
  for (bool is_reverse = false;; is_reverse = !is_reverse) {
    int at_barrier = 0, done = 0;
    for (int i = 0; i < num_threads; i += WARP) {
      const Wait what = run_warp(is_reverse ? num_threads - WARP - i : i, is_reverse);
      (what == DONE ? done : at_barrier) += WARP;
    }
    if (!at_barrier) return;
    if (done) fail("some threads wait for a barrier that others never reach");
  }
}

static void run(const void* given, int grid_x, int grid_y, int threads, void (*kernel)(const void*)) {
  if (threads % WARP || threads > 1024) fail("the number of threads is no multiple of 32 up to 1024");
  arguments = given;
  body = kernel;
  num_threads = threads;
  blockDim = {(unsigned)threads, 1, 1};
  gridDim = {(unsigned)grid_x, (unsigned)grid_y, 1};
  for (int y = grid_y - 1; y >= 0; --y)  // no order of blocks is promised
    for (int x = grid_x - 1; x >= 0; --x) {
      blockIdx = {(unsigned)x, (unsigned)y, 0};
      run_block();
    }
}

}  // namespace host

static inline void __syncthreads() { host::wait(host::BARRIER); }
static inline void __syncwarp() {}  // where lanes exchange nothing by memory

static inline int min(int x, int y) { return x < y ? x : y; }
static inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return bits;
}
static inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
static inline float __shfl_xor_sync(unsigned, float x, int bit) {
  host::Fiber& fiber = host::fibers[host::current];
  fiber.bits = __float_as_uint(x);
  fiber.source = (host::current % host::WARP) ^ bit;
  return __uint_as_float(host::wait(host::SHUFFLE).bits);
}
static inline int __shfl_sync(unsigned, int x, int lane) {
  host::Fiber& fiber = host::fibers[host::current];
  fiber.bits = (unsigned)x;
  fiber.source = (unsigned)lane;
  return (int)host::wait(host::SHUFFLE).bits;
}
#define __expf(x) expf(x)
static inline float __fdividef(float x, float y) { return x / y; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const unsigned long long bytes = (unsigned long long)y << 32 | x;
  unsigned found = 0;
  for (int i = 0; i < 4; ++i) found |= (unsigned)(bytes >> 8 * ((selector >> 4 * i) & 7) & 0xff) << 8 * i;
  return found;
}

static inline float half_to_float(unsigned short bits) { return host::half_value(bits); }
static inline unsigned short float_to_half(float x) {
  const _Float16 half = (_Float16)x;
  unsigned short bits;
  memcpy(&bits, &half, 2);
  return bits;
}

// An asynchronous copy of 16 bytes, or of zeros, happens at the wait for its group.
static inline void copy_async(void* to, const void* from, bool is_valid) {
  host::Fiber& fiber = host::fibers[host::current];
  memset(to, 0xff, 16);
  if (fiber.num_copies == host::MAX_COPIES) host::fail("too many copies under way");
  fiber.copies[fiber.num_copies++] = {to, from, is_valid};
}
static inline void commit_copies() {
  host::Fiber& fiber = host::fibers[host::current];
  if (fiber.num_groups == host::MAX_COPIES) host::fail("too many groups of copies under way");
  fiber.group_ends[fiber.num_groups++] = fiber.num_copies;
}
template <int LEFT>
static inline void wait_for_copies() {
  host::Fiber& fiber = host::fibers[host::current];
  const int finished = fiber.num_groups - LEFT;
  if (finished <= 0) return;
  const int end = fiber.group_ends[finished - 1];
  for (int i = 0; i < end; ++i) {
    if (fiber.copies[i].is_valid) memcpy(fiber.copies[i].to, fiber.copies[i].from, 16);
    else memset(fiber.copies[i].to, 0, 16);
  }
  for (int i = end; i < fiber.num_copies; ++i) fiber.copies[i - end] = fiber.copies[i];
  for (int i = finished; i < fiber.num_groups; ++i) fiber.group_ends[i - finished] = fiber.group_ends[i] - end;
  fiber.num_copies -= end;
  fiber.num_groups -= finished;
}
static inline void multiply_16x8x16(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2], bool is_half) {
  host::Fiber& fiber = host::fibers[host::current];
  memcpy(fiber.a, a, sizeof a);
  memcpy(fiber.b, b, sizeof b);
  memcpy(fiber.sums, sums, sizeof sums);
  fiber.source = is_half;
  memcpy(sums, host::wait(host::PRODUCT).sums, sizeof sums);
}
