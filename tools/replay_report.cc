#include "replay_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <stdexcept>

#include "cpu_caches.h"
#include "options.h"

namespace pagemill {
namespace {

constexpr std::array<const char*, 3> kKinds = {"decode", "prefill", "mixed"};  // by StepKind

const ReplayTotals& of(const ReplaySummary& summary, StepKind kind) {
  return summary.kind[static_cast<size_t>(kind)];
}

// Those that all the work would reach in the least time.
PeakRates mean_peak(const ReplayTotals& totals) {
  return {totals.work.bytes / totals.read_seconds, totals.work.flops / totals.flops_seconds};
}

std::string ratio(bool meaningful, double value) {
  return meaningful && std::isfinite(value) ? fmt::format("{:.3f}", value) : "-";
}

std::string totals_row(const char* name, const ReplayTotals& t, bool decode, bool prefill) {
  return fmt::format("{:<10} {:>9} {:>11} {:>10.2f} s {:>8.3f} s {:>8} {:>8} {:>9}\n", name, t.steps,
                     t.tokens, t.run_seconds, t.plan_seconds, ratio(decode, t.mbu()), ratio(prefill, t.mfu()),
                     ratio(true, t.roofline()));
}

}  // namespace

std::string replay_table(const ReplayTitle& title, const ReplayReport& report) {
  const pm_config& config = title.options.config;
  const ReplaySummary summary = summarize(report);
  const PeakRates peak = mean_peak(summary.all);
  std::string text;
  const auto out = std::back_inserter(text);
  const auto row = [&](const char* name, const std::string& value) {
    fmt::format_to(out, "{:<10} {}\n", name, value);
  };
  row("trace", fmt::format("{}: {} of {} requests done", title.trace, report.finished, report.requests));
  row("model", fmt::format("{}: {} heads, {} KV heads, head dim {}, {} layer{}", title.model.name,
                           config.num_heads, config.num_kv_heads, config.head_dim, title.options.layers,
                           title.options.layers == 1 ? "" : "s"));
  row("kernels", fmt::format("{}, {} threads, {}, cache {}, {}, page size {}", report.isa, config.threads,
                             dtype_name(config.dtype), dtype_name(config.cache_dtype),
                             layout_name(config.layout), config.page_size));
  row("pages", fmt::format("at most {} of {} in use, {} prompt tokens found in the cache", report.peak_pages,
                           config.num_pages, report.hit_tokens));
  row("peaks", fmt::format("{:.1f} GB/s read, {:.1f} GFLOP/s", peak.read / 1e9, peak.flops / 1e9));
  row("verified", report.verified ? fmt::format("{} rows against fp64, worst error {:.3f} of the bound",
                                                report.verified, report.worst_error)
                                  : "nothing (--verify)");
  fmt::format_to(out, "\n{:<10} {:>9} {:>11} {:>12} {:>10} {:>8} {:>8} {:>9}\n", "", "steps", "tokens",
                 "attention", "planning", "mbu", "mfu", "roofline");
  for (size_t i = 0; i < kKinds.size(); ++i) {
    const auto kind = static_cast<StepKind>(i);
    text += totals_row(kKinds[i], summary.kind[i], kind == StepKind::decode, kind == StepKind::prefill);
  }
  return text + totals_row("all", summary.all, false, false);
}

nlohmann::ordered_json replay_json(const ReplayTitle& title, const ReplayReport& report) {
  const pm_config& config = title.options.config;
  const ReplaySummary summary = summarize(report);
  const PeakRates peak = mean_peak(summary.all);
  nlohmann::ordered_json line = {{"case", "replay"},
                                 {"trace", title.trace},
                                 {"model", title.model.name},
                                 {"isa", report.isa},
                                 {"threads", config.threads},
                                 {"dtype", dtype_name(config.dtype)},
                                 {"cache_dtype", dtype_name(config.cache_dtype)},
                                 {"layout", layout_name(config.layout)},
                                 {"page_size", config.page_size},
                                 {"pages", config.num_pages},
                                 {"heads", config.num_heads},
                                 {"kv_heads", config.num_kv_heads},
                                 {"head_dim", config.head_dim},
                                 {"layers", title.options.layers},
                                 {"max_seqs", title.options.max_seqs},
                                 {"budget", title.options.budget},
                                 {"requests", report.requests},
                                 {"finished", report.finished},
                                 {"steps", summary.all.steps},
                                 {"tokens", summary.all.tokens},
                                 {"seconds", summary.all.seconds()},
                                 {"attention_seconds", summary.all.run_seconds},
                                 {"plan_seconds", summary.all.plan_seconds},
                                 {"bytes", summary.all.work.bytes},
                                 {"flops", summary.all.work.flops},
                                 {"peak_read_gbps", peak.read / 1e9},
                                 {"peak_gflops", peak.flops / 1e9},
                                 {"mbu", of(summary, StepKind::decode).mbu()},
                                 {"mfu", of(summary, StepKind::prefill).mfu()},
                                 {"roofline", summary.all.roofline()},
                                 {"peak_pages", report.peak_pages},
                                 {"prefix_hit_tokens", report.hit_tokens},
                                 {"verified_rows", report.verified},
                                 {"worst_error", report.worst_error}};
  for (size_t i = 0; i < kKinds.size(); ++i) {
    const ReplayTotals& t = summary.kind[i];
    line[kKinds[i]] = {
        {"steps", t.steps}, {"tokens", t.tokens}, {"seconds", t.seconds()}, {"roofline", t.roofline()}};
  }
  return line;
}

std::string judge_ratios(const ReplayReport& report) {
  constexpr double kMost = 1.02;
  const ReplaySummary summary = summarize(report);
  const double mbu = of(summary, StepKind::decode).mbu(), mfu = of(summary, StepKind::prefill).mfu();
  const double roofline = summary.all.roofline();
  if (!(mbu > kMost || mfu > kMost || roofline > kMost)) return "";
  const std::string ratios = fmt::format("mbu {:.3f}, mfu {:.3f}, roofline {:.3f}", mbu, mfu, roofline);
  const double bytes = summary.all.work.bytes / summary.all.steps;
  const double cache = last_level_cache_bytes();
  if (mfu > kMost || bytes > 4 * cache) {
    throw std::runtime_error(
        fmt::format("measuring error: {}, of which none can be above {}", ratios, kMost));
  }
  return fmt::format(
      "{}: above {}, as a step reads {:.0f} MB, which the caches of the CPU ({:.0f} MB) may hold", ratios,
      kMost, bytes / 1e6, cache / 1e6);
}

}  // namespace pagemill
