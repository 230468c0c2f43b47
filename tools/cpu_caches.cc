#include "cpu_caches.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>

namespace pagemill {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// "1024K" or "32M"; 0 if it is no number.
size_t parse_size(const std::string& text) {
  char unit = 0;
  size_t number = 0;
  if (std::sscanf(text.c_str(), "%zu%c", &number, &unit) < 1) return 0;
  return unit == 'K' ? number << 10 : unit == 'M' ? number << 20 : number;
}

size_t sysconf_bytes(int level) {
#ifdef _SC_LEVEL1_DCACHE_SIZE
  constexpr int kNames[] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
  return size_t(std::max(0L, sysconf(kNames[level - 1])));
#else
  static_cast<void>(level);
  return 0;
#endif
}

}  // namespace

std::vector<CpuCache> cpu_caches() {
  std::vector<CpuCache> caches;
  for (int i = 0;; ++i) {
    const std::string dir = fmt::format("/sys/devices/system/cpu/cpu0/cache/index{}/", i);
    const std::string type = first_line(dir + "type");
    if (type.empty()) break;
    const std::string level = first_line(dir + "level");
    const size_t bytes = parse_size(first_line(dir + "size"));
    if (type == "Instruction" || level.empty() || bytes == 0) continue;
    caches.push_back({std::stoi(level), bytes, first_line(dir + "shared_cpu_list")});
  }
  if (!caches.empty()) {
    std::ranges::sort(caches, {}, &CpuCache::level);
    return caches;
  }
  for (int level = 1; level <= 3; ++level) {
    if (const size_t bytes = sysconf_bytes(level)) caches.push_back({level, bytes, ""});
  }
  return caches;
}

size_t last_level_cache_bytes() {
  size_t bytes = sysconf_bytes(3);
  for (const CpuCache& cache : cpu_caches()) bytes = std::max(bytes, cache.bytes);
  return bytes ? bytes : size_t{32} << 20;
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

}  // namespace pagemill
