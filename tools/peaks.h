// Measured peaks of the machine: read bandwidth and multiply-add rate, on the threads and the page kind of
// the work that is compared with them. A slice takes 20 to 30 ms, short enough to lie between two
// repetitions of the work.
#ifndef PAGEMILL_TOOLS_PEAKS_H_
#define PAGEMILL_TOOLS_PEAKS_H_

#include <pagemill/pagemill.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "memory.h"
#include "workload.h"

namespace pagemill {

// Seconds of the clock that rates are taken with: CPU time of the calling thread if the work has one
// thread, so that a noisy neighbour does not count; wall time otherwise.
double clock_seconds(int threads);

struct ReadKernel {
  const char* name;
  bool (*supported)();
  uint64_t (*run)(const std::byte* data, size_t bytes);  // bytes: a multiple of 256
};
std::span<const ReadKernel> read_kernels();

struct MultiplyKernel {
  const char* name;
  double flops_per_iteration;
  float (*run)(int64_t iterations);
};
// The best multiply of an ISA (a name of pm_isa_get) for the products of these dtypes.
const MultiplyKernel& best_multiply(std::string_view isa, pm_dtype dtype, pm_dtype cache_dtype);

class ReadPeak {
 public:
  // Fills a buffer of 1 GiB, or 4 times the last-level cache, and picks the fastest kernel.
  // executor: of `threads` threads.
  ReadPeak(const pm_executor& executor, int threads);

  double slice();                        // bytes/s; walks on through the buffer
  double best() const { return best_; }  // bytes/s, of the kernel when it was picked
  const char* kernel() const { return kernel_->name; }

 private:
  double measure(const ReadKernel& kernel, size_t bytes);

  pm_executor executor_;
  int threads_;
  HugeBuffer buffer_;
  size_t offset_ = 0;  // bytes: where the next slice begins
  const ReadKernel* kernel_ = nullptr;
  double best_ = 0;
  size_t slice_bytes_ = 0;
};

class MultiplyPeak {
 public:
  MultiplyPeak(const pm_executor& executor, int threads, const MultiplyKernel& kernel);

  double slice();                        // flop/s
  double best() const { return best_; }  // flop/s, of the first few slices
  const char* kernel() const { return kernel_->name; }

 private:
  pm_executor executor_;
  int threads_;
  const MultiplyKernel* kernel_;
  double best_ = 0;
  int64_t iterations_ = 1000;  // of a task
};

// Both, for the work of one configuration.
class Peaks {
 public:
  Peaks(const pm_executor& executor, int threads, std::string_view isa, pm_dtype dtype, pm_dtype cache_dtype)
      : read_(executor, threads), multiply_(executor, threads, best_multiply(isa, dtype, cache_dtype)) {}

  PeakRates slice() { return {read_.slice(), multiply_.slice()}; }
  PeakRates best() const { return {read_.best(), multiply_.best()}; }
  const char* read_kernel() const { return read_.kernel(); }
  const char* multiply_kernel() const { return multiply_.kernel(); }

 private:
  ReadPeak read_;
  MultiplyPeak multiply_;
};

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_PEAKS_H_
