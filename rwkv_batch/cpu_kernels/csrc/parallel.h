// Work on several threads: the tiles of a region are claimed one after the other, by the calling thread and by workers.
#pragma once
#include <algorithm>
#include <cstdint>

// Calls run(task, begin, end) for ranges of `chunk` tiles that together are those from 0 to count - 1, each once.
// Returns when all have ended. A worker that has claimed no tile is not waited for. A task that throws ends the
// program: other threads may still use what the calling thread would leave.
typedef void (*RunTiles)(const void* task, int64_t begin, int64_t end);
void run_region(int64_t count, int64_t chunk, RunTiles run, const void* task) noexcept;

// The number of threads for regions that this thread begins, itself included.
int64_t region_threads();

// Calls task(tile) for each tile from 0 to count - 1, `chunk` neighboring ones in one thread.
template <typename Task>
static inline void for_each_tile(int64_t count, const Task& task, int64_t chunk = 1) {
  const RunTiles run = [](const void* task, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) (*(const Task*)task)(tile);
  };
  if (count <= chunk) run(&task, 0, count);
  else run_region(count, chunk, run, &task);
}

// One object of each type for each thread, which keeps its memory from call to call. Not inlined, so that a caller
// looks its address up once.
template <typename T>
__attribute__((noinline)) static T& thread_object() {
  static thread_local T object;
  return object;
}
