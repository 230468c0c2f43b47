// Threads that take the tasks of one parallel_for at a time.
#pragma once

#include <pagemill/pagemill.h>
#include <sys/types.h>

#include <memory>

namespace pagemill {

class ThreadPool {
 public:
  explicit ThreadPool(int32_t threads);  // throws std::bad_alloc or std::system_error
  ~ThreadPool();
  void parallel_for(int32_t n, void (*task)(void*, int32_t), void* arg);
  pm_executor executor();

 private:
  struct State;
  void restart_after_fork();

  const int32_t threads_;
  pid_t owner_;
  std::unique_ptr<State> state_;
};

// The process's own pool, made on first use.
pm_status default_executor(pm_executor& out);

}  // namespace pagemill

struct pm_pool {
  pagemill::ThreadPool pool;
};
