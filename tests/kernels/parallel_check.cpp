// Regions of csrc/parallel.cpp: every tile is computed once, from several threads at a time and in a forked process.
#include <dirent.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
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

int main(int, char** arguments) {
  const int regions = atoi(arguments[1]);
  std::atomic<bool> all{true};
  std::vector<std::thread> callers;
  for (unsigned seed = 1; seed <= 3; ++seed) callers.emplace_back([&, seed] { all = are_right(seed, regions) && all; });
  for (std::thread& caller : callers) caller.join();
  const pid_t child = fork();
  if (child == 0) _exit(are_right(9, regions) && threads_of_process() > 1 ? 0 : 1);  // it has workers of its own
  int status = 1;
  waitpid(child, &status, 0);
  puts(all && status == 0 ? "right" : "wrong");
}
