// XLA's threads as an executor.
#pragma once

#include <pagemill/pagemill.hpp>

#include <atomic>
#include <cstdint>
#include <memory>

#include "xla/ffi/api/ffi.h"

namespace pagemill::jax {

// The calling thread, itself one of XLA's or the host's, takes tasks like the others and waits for those that
// began elsewhere, never for a thread of the pool to become free: handlers of several devices may fill the
// pool.
class XlaPool {
 public:
  explicit XlaPool(xla::ffi::ThreadPool& pool) : pool_(pool) {}

  void operator()(int32_t n, auto&& body) {
    const auto tasks = std::make_shared<Tasks>();
    const auto take = [](Tasks& all, int32_t count, auto& run) {
      for (int32_t i; (i = all.next.fetch_add(1, std::memory_order_relaxed)) < count;) {
        run(i);
        if (all.done.fetch_add(1, std::memory_order_acq_rel) + 1 == count) all.done.notify_one();
      }
    };
    for (int32_t helper = 1; helper < n; ++helper) {
      pool_.Schedule([tasks, n, body, take]() mutable { take(*tasks, n, body); });
    }
    take(*tasks, n, body);
    for (int32_t done; (done = tasks->done.load(std::memory_order_acquire)) < n;) tasks->done.wait(done);
  }

 private:
  struct Tasks {
    std::atomic<int32_t> next{0}, done{0};
  };

  xla::ffi::ThreadPool& pool_;
};

}  // namespace pagemill::jax
