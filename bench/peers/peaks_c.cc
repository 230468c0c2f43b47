// tools/peaks.h for peaks.py.
#include "peaks.h"

#include <pagemill/pagemill.h>

#include "cpu_caches.h"

extern "C" {

// executor: of `threads` threads, outlives the result. dtype: a pm_dtype, of queries, keys and values.
PM_API void* peaks_create(const pm_executor* executor, int threads, const char* isa, int dtype) {
  const auto type = static_cast<pm_dtype>(dtype);
  return new pagemill::Peaks(*executor, threads, isa, type, type);
}

PM_API void peaks_destroy(void* peaks) {
  delete static_cast<pagemill::Peaks*>(peaks);
}

// rates: bytes/s and flop/s.
PM_API void peaks_slice(void* peaks, double rates[2]) {
  const pagemill::PeakRates slice = static_cast<pagemill::Peaks*>(peaks)->slice();
  rates[0] = slice.read;
  rates[1] = slice.flops;
}

PM_API size_t peaks_last_level_cache_bytes() {
  return pagemill::last_level_cache_bytes();
}

}  // extern "C"
