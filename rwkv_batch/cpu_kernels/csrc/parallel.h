// Work on several threads: the tiles of a region are claimed one after the other, by the calling thread and by workers.
#pragma once
#include <algorithm>
#include <cstdint>

// How many tiles a thread claims at a time.
enum Claims {
  ONE_CHUNK,  // tiles that take different times: no thread is to get many that are slow
  A_SHARE     // tiles that take the same time: a part of what is left, as each claim costs some tenths of a microsecond
};

// Calls run(task, begin, end) for ranges of tiles that together are those from 0 to count - 1, each once. A range is
// one chunk of `chunk` neighboring tiles, or several. Returns when all have ended. A worker that has claimed no tile is
// not waited for. A task that throws ends the program: other threads may still use what the calling thread would leave.
typedef void (*RunTiles)(const void* task, int64_t begin, int64_t end);
void run_region(int64_t count, int64_t chunk, Claims claims, RunTiles run, const void* task) noexcept;

// The number of threads for regions that this thread begins, itself included.
int64_t region_threads();

// Calls task(tile) for each tile from 0 to count - 1, `chunk` neighboring ones in one thread.
template <typename Task>
static inline void for_each_tile(int64_t count, const Task& task, int64_t chunk = 1, Claims claims = ONE_CHUNK) {
  const RunTiles run = [](const void* task, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) (*(const Task*)task)(tile);
  };
  if (count <= chunk) run(&task, 0, count);
  else run_region(count, chunk, claims, run, &task);
}

// The same for tiles that take the same time.
template <typename Task>
static inline void for_each_even_tile(int64_t count, const Task& task, int64_t chunk = 1) {
  for_each_tile(count, task, chunk, A_SHARE);
}

// One object of each type for each thread, which keeps its memory from call to call. Not inlined, so that a caller
// looks its address up once.
template <typename T>
__attribute__((noinline)) static T& thread_object() {
  static thread_local T object;
  return object;
}
