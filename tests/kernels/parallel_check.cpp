// Regions of csrc/parallel.cpp: every tile is computed once, from several threads at a time, inside of other regions,
// in a process that is forked while a region runs, and where threads cannot be started.
#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "parallel.h"

extern "C" void set_region_threads(int32_t threads);

// Regions of random sizes, with random numbers of threads. Plain counters: a tile that two threads compute at a time,
// or one that is not finished when the region returns, is a data race.
static bool are_right(unsigned seed, int regions) {
  std::vector<int> counts;
  for (int region = 0; region < regions; ++region) {
    const int64_t count = rand_r(&seed) % 60, chunk = 1 + rand_r(&seed) % 5, work = rand_r(&seed) % 200;
    set_region_threads(1 + rand_r(&seed) % 4);
    if (rand_r(&seed) % 200 == 0) usleep(1000);  // workers fall asleep
    counts.assign(count, 0);
    for_each_tile(
        count,
        [&](int64_t tile) {
          volatile double x = 1;
          for (int64_t i = 0; i < work; ++i) x = x * 1.0001;
          ++counts[tile];
        },
        chunk, rand_r(&seed) % 2 ? A_SHARE : ONE_CHUNK);
    for (int64_t tile = 0; tile < count; ++tile)
      if (counts[tile] != 1) return false;
  }
  return true;
}

static int threads_of_process() {
  int threads = 0;
  DIR* tasks = opendir("/proc/self/task");
  while (readdir(tasks)) ++threads;
  closedir(tasks);
  return threads - 2;  // without . and ..
}

// How many threads of the pool may start, and how many were asked for.
static std::atomic<int> most_started{1 << 20}, asked{0};

// Takes the place of the system's function: fails as it does where no more threads can be started.
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*), void* given) {
  static const auto create = (decltype(&pthread_create))dlsym(RTLD_NEXT, "pthread_create");
  if (++asked > most_started) return EAGAIN;
  return create(thread, attributes, run, given);
}

// Whether a region of `count` tiles computes each once. Also computes what was asked for inside of each tile.
static bool is_right(int64_t count, int64_t chunk, Claims claims, int inner = 0) {
  std::vector<int> counts(count), inners(count * inner);
  for_each_tile(
      count,
      [&](int64_t tile) {
        ++counts[tile];
        for_each_tile(inner, [&, tile](int64_t i) { ++inners[tile * inner + i]; });
      },
      chunk, claims);
  for (const std::vector<int>* each : {&counts, &inners})
    for (const int number : *each)
      if (number != 1) return false;
  return true;
}

static bool is_right_in_extremes() {
  bool all = true;
  for (const Claims claims : {ONE_CHUNK, A_SHARE}) {
    set_region_threads(3);
    all = is_right(0, 1, claims) && is_right(1, 1, claims) && is_right(5, 1000, claims) && all;
    all = is_right((1 << 24) + 12345, 1, claims) && all;  // more tiles than a ticket can count
    all = is_right(64, 3, claims, 9) && all;
    set_region_threads(16);
    for (int i = 0; i < 10; ++i) all = is_right(300, 1, claims) && is_right(2, 1, claims) && all;
  }
  return all;
}

// With one worker in place of three: later regions do not ask for the others again.
static bool is_right_without_threads(int regions) {
  set_region_threads(4);
  most_started = 1;
  bool all = true;
  for (int i = 0; i < regions; ++i) all = is_right(40, 1, ONE_CHUNK) && all;
  return all && asked == 2 && threads_of_process() > 1;
}

// Forks while another thread is in the middle of a region, whose tiles end only when the child has ended.
static bool is_right_forked_in_a_region(int regions) {
  std::atomic<bool> has_begun{false}, may_end{false};
  std::atomic<int> computed{0};
  std::thread other([&] {
    set_region_threads(2);
    for_each_tile(8, [&](int64_t) {
      has_begun = true;
      while (!may_end) usleep(100);
      ++computed;
    });
  });
  while (!has_begun) usleep(100);
  const pid_t child = fork();
  if (child == 0) _exit(are_right(9, regions) && threads_of_process() > 1 ? 0 : 1);  // it has workers of its own
  int status = 1;
  waitpid(child, &status, 0);
  may_end = true;
  other.join();
  return status == 0 && computed == 8 && are_right(10, regions);
}

static bool are_right_from_three_threads(int regions) {
  std::atomic<bool> all{true};
  std::vector<std::thread> callers;
  for (unsigned seed = 1; seed <= 3; ++seed) callers.emplace_back([&, seed] { all = are_right(seed, regions) && all; });
  for (std::thread& caller : callers) caller.join();
  return all;
}

int main(int, char** arguments) {
  const char* part = arguments[1];
  const int regions = atoi(arguments[2]);
  bool is = false;
  if (!strcmp(part, "random")) is = are_right_from_three_threads(regions);
  if (!strcmp(part, "forked")) is = are_right_from_three_threads(100) && is_right_forked_in_a_region(regions);
  if (!strcmp(part, "extremes")) is = is_right_in_extremes();
  if (!strcmp(part, "without threads")) is = is_right_without_threads(regions);
  puts(is ? "right" : "wrong");
}
