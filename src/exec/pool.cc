#include "exec/pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "api/status.h"

namespace pagemill {
namespace {

constexpr auto kSpin = std::chrono::microseconds(50);  // a serving loop's next layer comes sooner than that

void pause() {
#if defined(PAGEMILL_X86)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Spins until done() or for kSpin; says whether done.
template <class Done>
bool spin(Done done) {
  const auto until = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < until);
  return done();
}

}  // namespace

struct ThreadPool::State {
  explicit State(int32_t threads) {
    workers.reserve(static_cast<size_t>(threads - 1));
    try {
      for (int32_t i = 1; i < threads; ++i) workers.emplace_back([this] { work(); });
    } catch (...) {
      stop();
      throw;
    }
  }
  ~State() { stop(); }

  void stop() {
    stopping.store(true);
    generation.fetch_add(1);
    generation.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  // A ticket is (generation, tasks, next task) in 32, 16 and 16 bits: whoever raises the last holds that task
  // of that generation, and with it the job's fields until the task is done.
  static constexpr int32_t kMostTasks = 0xffff;
  static uint64_t ticket_of(uint32_t generation, int32_t n) {
    return uint64_t{generation} << 32 | static_cast<uint64_t>(n) << 16;
  }

  void take_tasks() {
    uint64_t t = ticket.load(std::memory_order_acquire);
    while ((t & 0xffff) < (t >> 16 & 0xffff)) {
      if (!ticket.compare_exchange_weak(t, t + 1, std::memory_order_acq_rel, std::memory_order_acquire))
        continue;
      task(arg, first + static_cast<int32_t>(t & 0xffff));
      if (unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished.notify_one();
      t = ticket.load(std::memory_order_acquire);
    }
  }

  void work() {
    uint32_t seen = 0;
    while (!stopping.load(std::memory_order_relaxed)) {
      if (!spin([&] { return generation.load(std::memory_order_acquire) != seen; })) {
        sleepers.fetch_add(1);
        generation.wait(seen);
        sleepers.fetch_sub(1);
      }
      seen = generation.load(std::memory_order_acquire);
      take_tasks();
    }
  }

  void run(int32_t begin, int32_t n) {
    first = begin;
    unfinished.store(n, std::memory_order_relaxed);
    const uint32_t now = generation.load(std::memory_order_relaxed) + 1;
    ticket.store(ticket_of(now, n), std::memory_order_release);
    generation.store(now);
    if (sleepers.load() > 0) generation.notify_all();
    take_tasks();
    const auto done = [&] { return unfinished.load(std::memory_order_acquire) == 0; };
    while (!spin(done)) {
      const int32_t left = unfinished.load(std::memory_order_acquire);
      if (left > 0) unfinished.wait(left, std::memory_order_acquire);
    }
  }

  std::mutex one_at_a_time;
  void (*task)(void*, int32_t) = nullptr;
  void* arg = nullptr;
  int32_t first = 0;
  alignas(64) std::atomic<uint64_t> ticket{0};
  alignas(64) std::atomic<int32_t> unfinished{0};
  alignas(64) std::atomic<uint32_t> generation{0};
  std::atomic<int32_t> sleepers{0};
  std::atomic<bool> stopping{false};
  std::vector<std::thread> workers;
};

ThreadPool::ThreadPool(int32_t threads)
    : threads_(threads), owner_(getpid()), state_(std::make_unique<State>(threads)) {}

ThreadPool::~ThreadPool() {
  if (owner_ != getpid()) (void)state_.release();  // its threads stayed with the parent
}

void ThreadPool::restart_after_fork() {
  (void)state_.release();
  state_ = std::make_unique<State>(threads_);
  owner_ = getpid();
}

void ThreadPool::parallel_for(int32_t n, void (*task)(void*, int32_t), void* arg) {
  if (owner_ != getpid()) restart_after_fork();
  const std::scoped_lock lock(state_->one_at_a_time);
  state_->task = task;
  state_->arg = arg;
  for (int32_t begin = 0; begin < n; begin += State::kMostTasks) {
    state_->run(begin, std::min(n - begin, State::kMostTasks));
  }
}

pm_executor ThreadPool::executor() {
  pm_executor executor = PM_EXECUTOR_INIT;
  executor.context = this;
  executor.parallel_for = [](void* context, int32_t n, void (*task)(void*, int32_t), void* arg) {
    static_cast<ThreadPool*>(context)->parallel_for(n, task, arg);
  };
  return executor;
}

pm_status default_executor(pm_executor& out) {
  static std::once_flag once;
  static ThreadPool* pool = nullptr;  // never destroyed: threads may still run it while the process exits
  try {
    std::call_once(once, [] { pool = new ThreadPool(pm_default_threads()); });
  } catch (const std::exception& error) {
    return fail(PM_OUT_OF_MEMORY, "the process's pool: %s", error.what());
  }
  out = pool->executor();
  return PM_OK;
}

}  // namespace pagemill
