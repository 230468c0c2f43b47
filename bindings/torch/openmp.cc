#include "openmp.h"

#include <dlfcn.h>

#include <atomic>

namespace pagemill::torch {
namespace {

// What compilers make of `#pragma omp parallel`, of GCC's runtime and of LLVM's.
using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// Of the runtime that ATen itself calls, found as the linker found it: another one, such as that of a wheel
// whose process has preloaded its own, would start threads of its own.
Parallel find_parallel() {
  void* aten = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
  if (!aten) return nullptr;
  void* preloaded = dlsym(RTLD_DEFAULT, "GOMP_parallel");
  return reinterpret_cast<Parallel>(preloaded ? preloaded : dlsym(aten, "GOMP_parallel"));
}

struct Region {
  void (*task)(void*, int32_t);
  void* arg;
  int32_t n;
  std::atomic<int32_t> next{0};
};

void take_tasks(void* data) {
  auto& region = *static_cast<Region*>(data);
  for (int32_t i; (i = region.next.fetch_add(1, std::memory_order_relaxed)) < region.n;) {
    region.task(region.arg, i);
  }
}

}  // namespace

Executor openmp_executor() {
  static const Parallel parallel = find_parallel();
  if (!parallel) {
    throw InvalidArgument(
        "openmp = True: expected PyTorch, built with OpenMP, in this process (import torch)");
  }
  Executor executor;
  executor.context = reinterpret_cast<void*>(parallel);
  executor.parallel_for = [](void* context, int32_t n, void (*task)(void*, int32_t), void* arg) {
    Region region{task, arg, n};
    reinterpret_cast<Parallel>(context)(take_tasks, &region, static_cast<unsigned>(n), 0);
  };
  return executor;
}

}  // namespace pagemill::torch
