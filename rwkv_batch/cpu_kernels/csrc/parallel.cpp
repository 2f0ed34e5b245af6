// The pool of workers. One region runs at a time: a thread that finds the pool in use computes its region alone. The
// results of kernels do not depend on how many threads there are, nor on which of them computed a tile.
#include "parallel.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <atomic>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// How long a thread waits awake before it sleeps. Waking a thread costs some microseconds, on virtual machines some
// tens, and the next region of a step mostly follows within a hundred. Where other programs want the processor, a
// worker that is awake without work takes it from them, and is then itself among the first to lose it.
constexpr int64_t SPINS_NS = 300000, BUSY_WORKER_SPINS_NS = 5000;
// A thread that is this late had no processor. Other programs are assumed to run for a while after.
constexpr int64_t DELAY_NS = 300000, BUSY_NS = 100000000;
// Polls between two looks at the clock.
constexpr int POLLS = 32;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

// Whether other programs take processors away from this one.
class Contention {
 public:
  // A thread was late by so much: it had no processor, or it waited for a thread that had none.
  void see_delay(int64_t nanoseconds, int64_t now) {
    if (nanoseconds > DELAY_NS) last_seen.store(now, std::memory_order_relaxed);
  }
  bool is_seen(int64_t now) const { return now - last_seen.load(std::memory_order_relaxed) < BUSY_NS; }

 private:
  std::atomic<int64_t> last_seen{-BUSY_NS};
};

class Pool {
 public:
  // Runs a region. Only the thread that has taken the pool calls it.
  void run(int64_t count, int64_t chunk, int64_t threads, Claims claims, RunTiles run, const void* task) {
    const int64_t chunks = (count + chunk - 1) / chunk;
    start_workers(threads - 1);
    region_run.store(run, std::memory_order_relaxed);
    region_task.store(task, std::memory_order_relaxed);
    region_count.store(count, std::memory_order_relaxed);
    region_chunk.store(chunk, std::memory_order_relaxed);
    region_workers.store(threads - 1, std::memory_order_relaxed);
    region_divisor.store(claims == A_SHARE ? 2 * threads : chunks, std::memory_order_relaxed);
    unfinished.store(chunks, std::memory_order_relaxed);
    generation += 1;
    ticket.store(generation << REMAINING_BITS | (uint64_t)chunks);  // publishes what is above
    wake(std::min(threads, chunks) - 1);
    work(OWNER);
    wait();
  }

  std::atomic<bool> is_taken{false};

 private:
  static constexpr int64_t OWNER = -1;
  static constexpr int REMAINING_BITS = 24;
  static constexpr uint64_t REMAINING = (1 << REMAINING_BITS) - 1;

  // The number of the region, and how many of its chunks nobody has claimed. A thread claims some by counting down.
  // As the number is part of the word, a claim succeeds for the region only that the thread has read the sizes of.
  alignas(64) std::atomic<uint64_t> ticket{0};
  std::atomic<RunTiles> region_run{nullptr};
  std::atomic<const void*> region_task{nullptr};
  std::atomic<int64_t> region_count{0}, region_chunk{1}, region_workers{0};
  std::atomic<int64_t> region_divisor{1};  // a claim takes the chunks that are left, divided by this, at least one
  alignas(64) std::atomic<int64_t> unfinished{0};  // chunks of the region that are not computed
  std::atomic<bool> owner_sleeps{false};
  alignas(64) std::atomic<int64_t> num_asleep{0};
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t has_work = PTHREAD_COND_INITIALIZER, is_finished = PTHREAD_COND_INITIALIZER;
  std::atomic<int64_t> woken_at{0};  // when the owner last woke workers
  Contention contention;
  uint64_t generation = 0;
  int64_t num_workers = 0, most_workers = INT64_MAX;

  bool is_open() const { return ticket.load(std::memory_order_relaxed) & REMAINING; }

  // Waits awake until is_true() holds, from `start` on; false if it does not in so many nanoseconds.
  template <typename Condition>
  bool spins_until(const Condition& is_true, int64_t start, int64_t nanoseconds) {
    for (int64_t before = start, now; before < start + nanoseconds; before = now) {
      for (int poll = 0; poll < POLLS; ++poll) {
        if (is_true()) return true;
        pause();
      }
      now = now_ns();
      contention.see_delay(now - before, now);
    }
    return is_true();
  }

  // Claims chunks and computes them until none is left. Worker `index` helps regions that have more workers than that.
  void work(int64_t index) {
    for (uint64_t seen = ticket.load(std::memory_order_acquire); seen & REMAINING;) {
      if (index >= region_workers.load(std::memory_order_relaxed)) return;
      const RunTiles run = region_run.load(std::memory_order_relaxed);
      const void* task = region_task.load(std::memory_order_relaxed);
      const int64_t count = region_count.load(std::memory_order_relaxed);
      const int64_t chunk = region_chunk.load(std::memory_order_relaxed);
      const int64_t divisor = region_divisor.load(std::memory_order_relaxed);
      const int64_t left = seen & REMAINING, claimed = std::max<int64_t>(1, left / divisor);
      if (!ticket.compare_exchange_weak(seen, seen - claimed, std::memory_order_acq_rel)) continue;
      const int64_t end = count - (left - claimed) * chunk;
      run(task, std::max<int64_t>(0, end - claimed * chunk), end);
      if (unfinished.fetch_sub(claimed) == claimed && owner_sleeps.load()) {
        pthread_mutex_lock(&mutex);
        pthread_cond_signal(&is_finished);
        pthread_mutex_unlock(&mutex);
      }
      seen = ticket.load(std::memory_order_acquire);
    }
  }

  // Waits for chunks that workers have claimed.
  void wait() {
    const auto is_done = [this] { return unfinished.load(std::memory_order_acquire) == 0; };
    const int64_t start = now_ns();
    if (spins_until(is_done, start, SPINS_NS)) return;
    pthread_mutex_lock(&mutex);
    owner_sleeps.store(true);
    while (unfinished.load() != 0) pthread_cond_wait(&is_finished, &mutex);
    owner_sleeps.store(false);
    pthread_mutex_unlock(&mutex);
    const int64_t now = now_ns();
    contention.see_delay(now - start, now);
  }

  void wake(int64_t count) {
    if (count <= 0 || num_asleep.load() == 0) return;
    woken_at.store(now_ns(), std::memory_order_relaxed);
    const bool are_all = region_workers.load(std::memory_order_relaxed) >= num_workers;
    pthread_mutex_lock(&mutex);
    for (int64_t i = 0; are_all && i < std::min(count, num_asleep.load()); ++i) pthread_cond_signal(&has_work);
    if (!are_all) pthread_cond_broadcast(&has_work);  // a signal could reach a worker that is not to help
    pthread_mutex_unlock(&mutex);
  }

  void serve(int64_t index) {
    const auto has_part = [this, index] { return is_open() && index < region_workers.load(std::memory_order_relaxed); };
    for (;;) {
      const int64_t start = now_ns();
      if (!spins_until(has_part, start, contention.is_seen(start) ? BUSY_WORKER_SPINS_NS : SPINS_NS)) {
        pthread_mutex_lock(&mutex);
        num_asleep.fetch_add(1);
        bool has_slept = false;
        for (; !(ticket.load() & REMAINING) || index >= region_workers.load(); has_slept = true)
          pthread_cond_wait(&has_work, &mutex);
        num_asleep.fetch_sub(1);
        pthread_mutex_unlock(&mutex);
        const int64_t now = now_ns();
        if (has_slept) contention.see_delay(now - woken_at.load(std::memory_order_relaxed), now);
      }
      work(index);
    }
  }

  struct Start {
    Pool* pool;
    int64_t index;
  };

  static void* start(void* given) {
    const Start start = *(Start*)given;
    delete (Start*)given;
    start.pool->serve(start.index);
    return nullptr;
  }

  // Workers get no signals but those of their own faults: the program's own threads handle the others. Where no more
  // threads can be started, there are fewer workers, also in later regions.
  void start_workers(int64_t wanted) {
    wanted = std::min(wanted, most_workers);
    if (num_workers >= wanted) return;
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) sigdelset(&blocked, fault);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (; num_workers < wanted; ++num_workers) {
      pthread_t thread;
      Start* start = new Start{this, num_workers};
      if (pthread_create(&thread, &detached, &Pool::start, start)) {
        delete start;
        most_workers = num_workers;
        break;
      }
    }
    pthread_attr_destroy(&detached);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
};

// Never destroyed: workers sleep in it when the process ends.
alignas(Pool) unsigned char place[sizeof(Pool)];
Pool* make_pool() { return new (place) Pool; }

// Made when the library is loaded: a process that is forked while another thread makes it would wait for that thread.
Pool* const pool = [] {
  pthread_atfork(nullptr, nullptr, [] { make_pool(); });  // a forked process has no workers
  return make_pool();
}();

thread_local int64_t threads_of_caller = 1;

}  // namespace

int64_t region_threads() { return threads_of_caller; }

extern "C" void set_region_threads(int32_t threads) { threads_of_caller = threads; }

void run_region(int64_t count, int64_t chunk, Claims claims, RunTiles run, const void* task) noexcept {
  constexpr int64_t MOST_CHUNKS = 1 << 20;
  chunk = std::max(chunk, (count + MOST_CHUNKS - 1) / MOST_CHUNKS);
  if (threads_of_caller > 1 && count > chunk) {
    if (!pool->is_taken.exchange(true, std::memory_order_acquire)) {
      pool->run(count, chunk, threads_of_caller, claims, run, task);
      pool->is_taken.store(false, std::memory_order_release);
      return;
    }
  }
  run(task, 0, count);
}
