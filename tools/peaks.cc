#include "peaks.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <ctime>
#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu_caches.h"

namespace pagemill {
namespace {

constexpr size_t kChunk = size_t{2} << 20;                      // bytes of a read task
constexpr int kTasksPerThread = 8;                              // of the multiplications
constexpr double kReadSeconds = 0.03, kMultiplySeconds = 0.02;  // of a slice

// Runs body(0) .. body(tasks - 1) on the executor.
template <class Body>
void run_tasks(const pm_executor& executor, int tasks, Body body) {
  executor.parallel_for(
      executor.context, tasks, [](void* arg, int32_t i) { (*static_cast<Body*>(arg))(i); }, &body);
}

std::atomic<uint64_t> sink;  // keeps the compiler from dropping what is measured

}  // namespace

double clock_seconds(int threads) {
  timespec now;
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return double(now.tv_sec) + double(now.tv_nsec) * 1e-9;
}

ReadPeak::ReadPeak(const pm_executor& executor, int threads)
    : executor_(executor),
      threads_(threads),
      buffer_(std::max(size_t{1} << 30, 4 * last_level_cache_bytes())) {
  run_tasks(executor_, int(buffer_.bytes() / kChunk),
            [this](int i) { std::memset(buffer_.data() + i * kChunk, i + 1, kChunk); });
  std::vector<std::pair<double, const ReadKernel*>> rates;
  for (const ReadKernel& kernel : read_kernels()) {
    if (kernel.supported()) rates.emplace_back(measure(kernel, buffer_.bytes()), &kernel);
  }
  std::ranges::sort(rates, std::greater());
  rates.resize(std::min<size_t>(rates.size(), 4));
  for (int round = 0; round < 2; ++round) {
    for (auto& [rate, kernel] : rates) rate = std::max(rate, measure(*kernel, buffer_.bytes()));
  }
  std::tie(best_, kernel_) = *std::ranges::max_element(rates);
  const size_t chunks = std::max(size_t(threads_), size_t(best_ * kReadSeconds) / kChunk);
  slice_bytes_ = std::min(chunks * kChunk, buffer_.bytes());
}

double ReadPeak::slice() {
  return measure(*kernel_, slice_bytes_);
}

double ReadPeak::measure(const ReadKernel& kernel, size_t bytes) {
  const double start = clock_seconds(threads_);
  run_tasks(executor_, int(bytes / kChunk), [&](int i) {
    const size_t at = (offset_ + i * kChunk) % buffer_.bytes();
    sink.fetch_xor(kernel.run(buffer_.data() + at, kChunk), std::memory_order_relaxed);
  });
  const double seconds = clock_seconds(threads_) - start;
  offset_ = (offset_ + bytes) % buffer_.bytes();
  return double(bytes) / seconds;
}

MultiplyPeak::MultiplyPeak(const pm_executor& executor, int threads, const MultiplyKernel& kernel)
    : executor_(executor), threads_(threads), kernel_(&kernel) {
  constexpr int kToFindLength = 4, kToFindBest = 5;
  for (int round = 0; round < kToFindLength; ++round) {
    const double flops_of_task = slice() * kMultiplySeconds / (threads_ * kTasksPerThread);
    iterations_ = std::max<int64_t>(1000, int64_t(flops_of_task / kernel.flops_per_iteration));
  }
  for (int round = 0; round < kToFindBest; ++round) best_ = std::max(best_, slice());
}

double MultiplyPeak::slice() {
  const int tasks = threads_ * kTasksPerThread;
  const double start = clock_seconds(threads_);
  run_tasks(executor_, tasks,
            [&](int) { sink.fetch_add(uint64_t(kernel_->run(iterations_)), std::memory_order_relaxed); });
  const double seconds = clock_seconds(threads_) - start;
  return kernel_->flops_per_iteration * double(iterations_) * tasks / seconds;
}

}  // namespace pagemill
