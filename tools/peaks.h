// Measured peaks of the machine: read bandwidth and multiply-add rate, on the threads and the page kind of
// the work that is compared with them.
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

class Peaks {
 public:
  // Fills a buffer of 1 GiB, or 4 times the last-level cache, and picks the fastest read kernel. Every
  // measurement goes through `executor`, of `threads` threads. isa: a name of pm_isa_get. dtype, cache_dtype:
  // those of the work, which decide what its products are.
  Peaks(const pm_executor& executor, int threads, std::string_view isa, pm_dtype dtype, pm_dtype cache_dtype);

  // One slice of each, some 20 to 60 ms: short enough to lie between two repetitions of the work.
  double read_slice();   // bytes/s
  double flops_slice();  // flop/s
  PeakRates slice() { return {read_slice(), flops_slice()}; }

  // The best of the calibration, and the kernels that reached it.
  const PeakRates& best() const { return best_; }
  const char* read_kernel() const { return read_->name; }
  const char* flops_kernel() const { return flops_->name; }

  struct ReadKernel {
    const char* name;
    bool (*supported)();
    uint64_t (*run)(const std::byte* data, size_t bytes);  // bytes: a multiple of kReadStep
  };
  struct FlopsKernel {
    const char* name;
    double flops_per_iteration;
    float (*run)(int64_t iterations);
  };
  static constexpr size_t kReadStep = 4096;  // bytes

 private:
  double read(const ReadKernel& kernel, size_t bytes);  // bytes/s
  double multiply(int64_t iterations);                  // flop/s
  template <class Task>
  double seconds(int parts, Task task) const;

  pm_executor executor_;
  int threads_;
  HugeBuffer buffer_;
  size_t offset_ = 0;  // bytes: where the next read slice begins
  const ReadKernel* read_ = nullptr;
  const FlopsKernel* flops_ = nullptr;
  size_t read_slice_bytes_ = 0;
  int64_t flops_slice_iterations_ = 0;  // of each part
  PeakRates best_;
};

// Of this build; supported() tells whether the machine can run it.
std::span<const Peaks::ReadKernel> read_kernels();
// The best multiply of (isa, dtypes).
const Peaks::FlopsKernel& flops_kernel(std::string_view isa, pm_dtype dtype, pm_dtype cache_dtype);

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_PEAKS_H_
