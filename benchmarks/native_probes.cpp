// Probes in C++: how fast all threads together read memory, and multiply integers that stay in registers.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "kinds.h"

static double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The seconds from the moment in which all threads begin run(thread) until the last one has ended.
template <typename Run>
static double together(int threads, const Run& run) {
  std::atomic<int> ready{0};
  std::vector<double> begin(threads), end(threads);
  std::vector<std::thread> started;
  for (int i = 0; i < threads; ++i)
    started.emplace_back([&, i] {
      ++ready;
      while (ready < threads) continue;
      begin[i] = seconds();
      run(i);
      end[i] = seconds();
    });
  for (std::thread& thread : started) thread.join();
  return *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end());
}

static std::atomic<int32_t> result;  // a sum that nobody uses would not be computed

// Seconds in which all threads read `size` bytes, each thread a part of its own.
extern "C" double read_seconds(const char* memory, int64_t size, int threads) {
  const int64_t part = size / threads / 256 * 256;
  return together(threads, [&](int thread) {
    const char* mine = memory + thread * part;
    Ints sum[4] = {};
    for (int64_t i = 0; i < part; i += 4 * sizeof(Ints))
      for (int j = 0; j < 4; ++j) sum[j] = sum[j] + *(const Ints*)(mine + i + j * sizeof(Ints));
    result += (sum[0] + sum[1] + sum[2] + sum[3])[0];
  });
}

constexpr int SUMS = 2 * TILE_ROWS;  // as many as a kernel keeps in registers

// Multiplications and additions that one round of `int8_seconds` has.
extern "C" int64_t int8_operations() { return 2 * int64_t{SUMS} * LANES * Int8::INPUTS; }

// Seconds in which each thread adds products of 8-bit integers to sums in registers, `rounds` times, a multiple of 64,
// to each sum, with the instruction of the kernels.
extern "C" double int8_seconds(int64_t rounds, int threads) {
  return together(threads, [&](int) {
    constexpr int UNITS = 64;
    uint32_t x[UNITS];
    Ints sum[SUMS];
    for (int j = 0; j < SUMS; ++j) sum[j] = Int8::broadcast(j);  // different sums, so that none is left out
    for (int k = 0; k < UNITS; ++k) x[k] = 0x01020304 + k;
    for (int64_t i = 0; i < rounds / UNITS; ++i) {
      asm volatile("" : "+m"(x));  // the compiler does not know that the inputs stay the same
      for (int k = 0; k < UNITS; ++k) {
        const Ints input = Int8::broadcast(x[k]), w = Int8::broadcast(x[0]);
#pragma GCC unroll 32
        for (int j = 0; j < SUMS; ++j) sum[j] = Int8::add_product(sum[j], input, w);
      }
    }
    Ints total{};
#pragma GCC unroll 32
    for (int j = 0; j < SUMS; ++j) total = total + sum[j];
    result += total[0];
  });
}
