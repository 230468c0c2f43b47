#include <pagemill/pagemill.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <string>
#include <thread>

namespace {

int32_t affinity_threads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
}

// CPUs that a cgroup directory's quota allows; infinity without one.
double quota_of(const std::string& directory) {
  std::ifstream v2(directory + "/cpu.max");
  std::string quota;
  double period = 0;
  if (v2 >> quota >> period && quota != "max" && period > 0) return std::stod(quota) / period;
  std::ifstream v1_quota(directory + "/cpu.cfs_quota_us"), v1_period(directory + "/cpu.cfs_period_us");
  double limit = -1;
  if (v1_quota >> limit && v1_period >> period && limit > 0 && period > 0) return limit / period;
  return std::numeric_limits<double>::infinity();
}

double cgroup_threads() {
  double least = std::min(quota_of("/sys/fs/cgroup"), quota_of("/sys/fs/cgroup/cpu"));
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "0::/path" or "4:cpu,cpuacct:/path"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string root = controllers.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controllers;
    for (std::string path = line.substr(second + 1); path.size() > 1; path.erase(path.rfind('/'))) {
      least = std::min(least, quota_of(root + path));
    }
  }
  return least;
}

int32_t count_threads() {
  const double quota = std::max(1.0, std::ceil(cgroup_threads()));
  return static_cast<int32_t>(std::clamp<double>(quota, 1, affinity_threads()));
}

}  // namespace

int32_t pm_default_threads(void) {
  static const int32_t threads = count_threads();
  return threads;
}
