// The CPU and its data caches, as the system tells them.
#ifndef PAGEMILL_TOOLS_CPU_CACHES_H_
#define PAGEMILL_TOOLS_CPU_CACHES_H_

#include <cstddef>
#include <string>
#include <vector>

namespace pagemill {

struct CpuCache {
  int level;
  size_t bytes;
  std::string shared_cpus;  // such as "0-7", "" if unknown
};

std::vector<CpuCache> cpu_caches();  // of CPU 0, data and unified, by level; empty if unknown

// Where the system's sources differ (virtual machines), the largest size: the safe one for measurements
// that must not hit. 32 MiB if unknown.
size_t last_level_cache_bytes();

std::string cpu_name();  // as the system tells it, "unknown" if it does not

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_CPU_CACHES_H_
