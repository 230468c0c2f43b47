// `pagemill bench plan`: how long it takes to plan a step of decodes.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <vector>

#include "bench.h"
#include "options.h"
#include "peaks.h"

namespace pagemill {
namespace {

struct Options {
  ModelOption model;
  Config config;
  int batch = 256;
  int32_t context = 4096;
  int repetitions = 50;
  bool json = false;
};

// Contexts spread from a quarter of the longest to all of it, pages in random order.
class DecodeBatch {
 public:
  DecodeBatch(int sequences, int32_t longest, int page_size) : query_start_(sequences + 1) {
    std::mt19937 random(1);
    std::uniform_int_distribution<int32_t> keys((longest + 3) / 4, longest);
    std::iota(query_start_.begin(), query_start_.end(), 0);
    for (int b = 0; b < sequences; ++b) kv_len_.push_back(keys(random));
    batch_.pages_per_seq = (longest + page_size - 1) / page_size;
    table_.assign(int64_t{sequences} * batch_.pages_per_seq, 0);
    std::vector<int32_t*> entries;
    for (int b = 0; b < sequences; ++b) {
      for (int32_t p = 0; p * page_size < kv_len_[b]; ++p) {
        entries.push_back(&table_[int64_t{b} * batch_.pages_per_seq + p]);
      }
    }
    num_pages_ = std::ssize(entries);
    std::ranges::shuffle(entries, random);
    for (int32_t page = 0; page < num_pages_; ++page) *entries[page] = page;
    batch_.num_seqs = sequences;
    batch_.num_tokens = sequences;
    batch_.query_start = query_start_.data();
    batch_.kv_len = kv_len_.data();
    batch_.page_table = table_.data();
  }
  const Batch& get() const { return batch_; }
  int64_t num_pages() const { return num_pages_; }

 private:
  std::vector<int32_t> query_start_, kv_len_, table_;
  int64_t num_pages_ = 0;
  Batch batch_;
};

double seconds_of(int builds, Plan& plan, const Config& config, const Batch& batch) {
  const double start = clock_seconds(1);
  for (int i = 0; i < builds; ++i) plan.build(config, batch);
  return (clock_seconds(1) - start) / builds;
}

void run(Options& o) {
  const Model model = o.model.resolve();
  o.config.num_heads = model.heads;
  o.config.num_kv_heads = model.kv_heads;
  o.config.head_dim = model.head_dim;
  const DecodeBatch batch(o.batch, o.context, o.config.page_size);
  o.config.num_pages = batch.num_pages();
  Plan plan(o.config, batch.get());
  constexpr double kRepetition = 2e-3;  // seconds
  const int builds = 1 + static_cast<int>(kRepetition / seconds_of(3, plan, o.config, batch.get()));
  std::vector<double> seconds(o.repetitions);
  for (double& s : seconds) s = seconds_of(builds, plan, o.config, batch.get());
  std::ranges::sort(seconds);
  const double median = seconds[seconds.size() / 2];
  const pm_plan_stats stats = plan.stats();
  if (o.json) {
    const nlohmann::ordered_json line = {{"case", "plan"},
                                         {"model", model.name},
                                         {"batch", o.batch},
                                         {"context", o.context},
                                         {"page_size", o.config.page_size},
                                         {"pages", batch.num_pages()},
                                         {"threads", o.config.threads},
                                         {"repetitions", o.repetitions},
                                         {"items", stats.items},
                                         {"split_items", stats.split_items},
                                         {"seconds", median},
                                         {"least_seconds", seconds.front()}};
    fmt::print("{}\n", line.dump());
    return;
  }
  fmt::print("plan of {} decodes of {} to {} keys, {} pages of {} tokens, {} threads\n", o.batch,
             (o.context + 3) / 4, o.context, batch.num_pages(), o.config.page_size, o.config.threads);
  fmt::print("{:.1f} us (median of {}; least {:.1f}), {} items, {} of them splits\n", median * 1e6,
             o.repetitions, seconds.front() * 1e6, stats.items, stats.split_items);
}

}  // namespace

void add_bench_plan(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  o->config.page_size = 16;
  o->config.threads = pm_default_threads();
  CLI::App* app = bench.add_subcommand("plan", "Planning a step of decodes (256, of 1024 to 4096 keys)");
  o->model.add_to(*app);
  app->add_option("--batch", o->batch, "Sequences")->check(CLI::PositiveNumber)->capture_default_str();
  app->add_option("--context", o->context, "Keys of the longest; the shortest has a quarter")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app->add_option("--page-size", o->config.page_size, "Tokens of a page")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app->add_option("--threads", o->config.threads, "To plan for; default: what affinity and quota allow")
      ->check(CLI::Range(1, 4096));
  app->add_option("--repetitions", o->repetitions, "Repetitions to time")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_flag("--json", o->json, "Print one JSON object");
  app->callback([o] { run(*o); });
}

}  // namespace pagemill
