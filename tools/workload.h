// What a step of attention must read and compute at least: the counts behind MBU, MFU and roofline.
#ifndef PAGEMILL_TOOLS_WORKLOAD_H_
#define PAGEMILL_TOOLS_WORKLOAD_H_

#include <pagemill/pagemill.h>

#include <cstddef>
#include <cstdint>

namespace pagemill {

size_t element_size(pm_dtype dtype);  // bytes
const char* dtype_name(pm_dtype dtype);

struct Work {
  double bytes = 0;  // keys and values of the distinct visible (slot, KV head), each once
  double flops = 0;  // 4 D per visible (query, head, key)
};

// bytes/s and flop/s that the machine reaches at most.
struct PeakRates {
  double read = 0;
  double flops = 0;
};

// Of sequence b alone.
Work sequence_work(const pm_config& config, const pm_batch& batch, int b);
// Of the whole step: slots that several sequences see count once in bytes.
Work step_work(const pm_config& config, const pm_batch& batch);

// Sum over the sequences of max(bytes / peak read, flops / peak flops), in seconds.
double roofline_seconds(const pm_config& config, const pm_batch& batch, const PeakRates& peak);

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_WORKLOAD_H_
