#include <fmt/core.h>
#include <pagemill/pagemill.hpp>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "commands.h"
#include "cpu_caches.h"
#include "peaks.h"

namespace pagemill {
namespace {

struct MultiplyRate {
  std::string isa, products, kernel;
  double flops;  // flop/s
};

struct Info {
  std::string cpu;
  std::vector<CpuCache> caches;
  int threads;
  std::vector<pm_isa_info> isas;  // best first
  std::vector<pm_kernel_info> kernels;
  std::string read_kernel;
  double read;  // bytes/s
  std::vector<MultiplyRate> multiply;
};

template <class T, class Get>
std::vector<T> list(int32_t count, Get get) {
  std::vector<T> items(count);
  for (int32_t i = 0; i < count; ++i) {
    items[i].struct_size = sizeof(T);
    check(get(i, &items[i]));
  }
  return items;
}

// More slices than a peak takes when it is made: here no work follows that it must leave the time to.
template <class Peak>
double best_of_many(Peak peak) {
  double best = peak.best();
  for (int slice = 0; slice < 20; ++slice) best = std::max(best, peak.slice());
  return best;
}

void measure_peaks(Info& info) {
  const Pool pool(info.threads);
  const Executor executor = pool.executor();
  ReadPeak read(executor, info.threads);
  info.read_kernel = read.kernel();
  info.read = best_of_many(std::move(read));
  for (const pm_isa_info& isa : info.isas) {
    if (!isa.available) continue;
    const auto add = [&](const char* products, const MultiplyKernel& kernel) {
      info.multiply.push_back(
          {isa.name, products, kernel.name, best_of_many(MultiplyPeak(executor, info.threads, kernel))});
    };
    const MultiplyKernel& bf16 = best_multiply(isa.name, PM_BF16, PM_BF16);
    const MultiplyKernel& f32 = best_multiply(isa.name, PM_F32, PM_F32);
    add(&bf16 == &f32 ? "all dtypes" : "bf16 by bf16", bf16);
    if (&bf16 != &f32) add("other dtypes", f32);
  }
}

Info collect() {
  Info info{cpu_name(),
            cpu_caches(),
            pm_default_threads(),
            list<pm_isa_info>(pm_isa_count(), pm_isa_get),
            list<pm_kernel_info>(pm_kernel_count(), pm_kernel_get),
            "",
            0,
            {}};
  measure_peaks(info);
  return info;
}

void print_text(const Info& info) {
  fmt::print("pagemill {}\ncpu      {}\nthreads  {}\n", pm_version(), info.cpu, info.threads);
  fmt::print("caches  ");
  for (const CpuCache& c : info.caches) {
    fmt::print(" L{} {} KiB{}", c.level, c.bytes >> 10, &c == &info.caches.back() ? "" : ",");
  }
  fmt::print("{}\n\nisa\n", info.caches.empty() ? " unknown" : "");
  for (const pm_isa_info& isa : info.isas) {
    fmt::print("  {:<14} {}\n", isa.name, isa.selected ? "selected" : isa.reason);
  }
  fmt::print("\nmeasured peaks, {} threads\n", info.threads);
  fmt::print("  {:<14} {:8.1f} GB/s      {}\n", "read", info.read / 1e9, info.read_kernel);
  for (const MultiplyRate& m : info.multiply) {
    fmt::print("  {:<14} {:8.1f} GFLOP/s   {} ({})\n", m.isa, m.flops / 1e9, m.kernel, m.products);
  }
  fmt::print("\nkernels\n");
  for (const pm_kernel_info& kernel : info.kernels) fmt::print("  {}\n", kernel.name);
}

void print_json(const Info& info) {
  nlohmann::ordered_json line = {{"version", pm_version()},
                                 {"cpu", info.cpu},
                                 {"threads", info.threads},
                                 {"caches", nlohmann::ordered_json::array()},
                                 {"isas", nlohmann::ordered_json::array()},
                                 {"peak_read_gbps", info.read / 1e9},
                                 {"read_kernel", info.read_kernel},
                                 {"peak_gflops", nlohmann::ordered_json::array()},
                                 {"kernels", nlohmann::ordered_json::array()}};
  for (const CpuCache& c : info.caches) {
    line["caches"].push_back({{"level", c.level}, {"bytes", c.bytes}, {"shared_cpus", c.shared_cpus}});
  }
  for (const pm_isa_info& isa : info.isas) {
    line["isas"].push_back({{"name", isa.name},
                            {"available", isa.available != 0},
                            {"selected", isa.selected != 0},
                            {"reason", isa.reason}});
  }
  for (const MultiplyRate& m : info.multiply) {
    line["peak_gflops"].push_back(
        {{"isa", m.isa}, {"products", m.products}, {"kernel", m.kernel}, {"gflops", m.flops / 1e9}});
  }
  for (const pm_kernel_info& kernel : info.kernels) line["kernels"].push_back(kernel.name);
  fmt::print("{}\n", line.dump());
}

}  // namespace

void add_info(CLI::App& app) {
  CLI::App* info = app.add_subcommand("info", "The CPU, the ISA picked and why, the kernels, measured peaks");
  auto json = std::make_shared<bool>(false);
  info->add_flag("--json", *json, "Print one JSON object");
  info->callback([json] { *json ? print_json(collect()) : print_text(collect()); });
}

}  // namespace pagemill
