#include "tune.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <pagemill/pagemill.hpp>
#include <random>
#include <stdexcept>

#include "bench_step.h"
#include "options.h"
#include "peaks.h"
#include "workload.h"

namespace pagemill {
namespace {

constexpr int kKvHeads = 8;

// All tasks one after the other: what they take on one thread, however many were planned for.
Executor one_thread() {
  Executor executor;
  executor.parallel_for = [](void*, int32_t n, void (*task)(void*, int32_t), void* arg) {
    for (int32_t i = 0; i < n; ++i) task(arg, i);
  };
  return executor;
}

BenchSpec spec_of(const TuneShape& shape, const std::string& isa, int batch, int threads) {
  const Model model{"tune", shape.group * kKvHeads, kKvHeads, shape.head_dim, 1};
  return {"tune",       model, batch,   shape.keys, shape.q_len, 64, shape.dtype, shape.cache_dtype,
          shape.layout, isa,   threads, 0,          false};
}

// Seconds of one call: the median of a few repetitions, of fewer if they are long.
template <class Run>
double median_seconds(int clock_threads, Run run) {
  constexpr double kRepetition = 4e-3, kLong = 50e-3;
  run();  // touches everything
  const auto seconds_of = [&](int calls) {
    const double start = clock_seconds(clock_threads);
    for (int i = 0; i < calls; ++i) run();
    return (clock_seconds(clock_threads) - start) / calls;
  };
  const double once = seconds_of(1);
  std::vector<double> seconds(once > kLong ? 1 : 7);
  std::ranges::generate(seconds, [&] { return seconds_of(1 + static_cast<int>(kRepetition / once)); });
  const auto middle = seconds.begin() + std::ssize(seconds) / 2;
  std::ranges::nth_element(seconds, middle);
  return *middle;
}

double step_seconds(BenchStep& step) {
  const Executor executor = one_thread();
  return median_seconds(1, [&] { step.run(executor); });
}

// The kind in a kernel's name, attend_<kind>_d<dim>_<isa>.
int kind_of(const std::string& kernel) {
  for (size_t kind = 0; kind < std::size(kCostKinds); ++kind) {
    if (kernel.starts_with(fmt::format("attend_{}_d", kCostKinds[kind]))) return static_cast<int>(kind);
  }
  throw std::runtime_error(fmt::format("{}: expected attend_<kind of products>_d<head dim>_<isa>", kernel));
}

std::string describe(const TuneShape& s) {
  return fmt::format("{} x {}, {}, D {}, {} rows, {} keys", dtype_name(s.dtype), dtype_name(s.cache_dtype),
                     layout_name(s.layout), s.head_dim, s.rows(), s.keys);
}

TuneSample measure_items(const TuneShape& shape, const std::string& isa) {
  const int batch = std::clamp(2048 / shape.keys, 1, 16);
  BenchStep step(spec_of(shape, isa, batch, 1));
  const double ns = step_seconds(step) * 1e9 / (batch * kKvHeads);
  return {shape, kind_of(step.stats().kernel), ns, false};
}

// Splits of a tile, all run by one thread, against the tile unsplit.
double measure_merge_float(const std::string& isa, const CostModel& model, const TuneShape& shape,
                           double turnover) {
  BenchStep whole(spec_of(shape, isa, 1, 1), turnover), split(spec_of(shape, isa, 1, 64), turnover);
  const pm_plan_stats stats = split.stats();
  const double added = (step_seconds(split) - step_seconds(whole)) * 1e9;
  if (stats.merges == 0) {
    throw std::runtime_error(fmt::format("merges of {}: expected a plan with splits", describe(shape)));
  }
  const double splits = static_cast<double>(stats.split_items) / static_cast<double>(stats.merges);
  const UnitCost unit = model.unit(shape.head_dim, int64_t(element_size(shape.cache_dtype)), false);
  const double items = (splits - 1) * kKvHeads * unit(shape.rows(), 0);
  const double floats = splits * kKvHeads * shape.rows() * (shape.head_dim + 2);
  return (added - items) / floats;
}

// Of decodes, whose partial results stay in the caches (and their keys too, as memory would hide the
// difference), or of prompts, whose partial results do not: what is dearer.
double measure_merge_float(const std::string& isa, const CostModel& model) {
  constexpr double kLeast = 0.05;  // ns: written and read once
  const TuneShape decode{PM_BF16, PM_BF16, PM_TILES, 128, 8, 1, 1024},
      prompt{PM_BF16, PM_BF16, PM_TILES, 128, 4, 48, 4096};
  return std::max(
      {kLeast, measure_merge_float(isa, model, decode, 0), measure_merge_float(isa, model, prompt, 0)});
}

double measure_store(const std::string& isa, pm_dtype dtype, pm_dtype cache_dtype) {
  const TuneShape shape{dtype, cache_dtype, PM_TILES, 128, 1, 512, 512};
  BenchStep step(spec_of(shape, isa, 4, 1));
  const Executor executor = one_thread();
  const double elements = 4.0 * shape.q_len * kKvHeads * 2 * shape.head_dim;
  return median_seconds(1, [&] { step.store(executor); }) * 1e9 / elements;
}

// ns per byte of one thread while all read as fast as they can.
double measure_shared_byte(int threads) {
  const Pool pool(threads);
  return threads * 1e9 / ReadPeak(pool.executor(), threads).best();
}

CostModel first_guess(double item) {
  return {item, 0.2, 0.07, 0.07, 0.1, 0.02, 0.2, 0.04, 0.4, 0.4, 0.05};
}

}  // namespace

std::vector<TuneShape> tune_shapes() {
  constexpr std::array<std::pair<pm_dtype, pm_dtype>, 5> kDtypes = {
      {{PM_BF16, PM_BF16}, {PM_F32, PM_BF16}, {PM_F32, PM_F32}, {PM_BF16, PM_F16}, {PM_BF16, PM_F8E4M3}}};
  constexpr std::array kHeadDims = {64, 128, 256};
  constexpr std::array kKeys = {16, 60, 200, 500, 1100, 2500, 4096};
  constexpr std::array<std::pair<int, int>, 8> kRows = {
      // G, q_len
      {{1, 1}, {4, 1}, {4, 1}, {8, 1}, {16, 1}, {4, 4}, {4, 16}, {4, 48}}};
  constexpr int kOfEach = 20;
  constexpr int kMostElements = 192 * 128;  // of the queries of one item
  constexpr double kMostProducts = 4e7;     // of an item
  std::mt19937 random(1);
  const auto pick = [&](const auto& values) { return values[random() % values.size()]; };
  std::vector<TuneShape> shapes;
  for (const auto& [dtype, cache_dtype] : kDtypes) {
    for (const pm_layout layout : {PM_TILES, PM_ROWS}) {
      for (int i = 0; i < kOfEach;) {
        const auto [group, q_len] = pick(kRows);
        const TuneShape shape{dtype, cache_dtype, layout, pick(kHeadDims), group, q_len, pick(kKeys)};
        // Few queries against their keys: all of them see nearly all.
        if (shape.keys < 4 * q_len || shape.rows() * shape.head_dim > kMostElements ||
            double(shape.rows()) * shape.keys * shape.head_dim > kMostProducts) {
          continue;
        }
        shapes.push_back(shape);
        ++i;
      }
    }
  }
  return shapes;
}

Tune measure_tune(const std::string& isa, int threads,
                  const std::function<void(const std::string&)>& progress) {
  Tune tune{isa, threads, {}, {}, 0};
  progress("bandwidth of all threads");
  const double shared_byte = measure_shared_byte(threads);
  progress("stores");
  std::array<double, std::size(kCostKinds)> store = {
      measure_store(isa, PM_BF16, PM_BF16), measure_store(isa, PM_F32, PM_BF16),
      measure_store(isa, PM_F32, PM_F16), measure_store(isa, PM_F32, PM_F32)};
  const std::vector<TuneShape> shapes = tune_shapes();
  for (size_t i = 0; i < shapes.size(); ++i) {
    progress(fmt::format("items {} of {}: {}", i + 1, shapes.size(), describe(shapes[i])));
    tune.samples.push_back(measure_items(shapes[i], isa));
    tune.samples.back().held_out = i % 4 == 3;
  }
  for (size_t kind = 0; kind < tune.models.size(); ++kind) {
    std::vector<TuneSample> of_kind;
    std::ranges::copy_if(tune.samples, std::back_inserter(of_kind),
                         [&](const TuneSample& s) { return s.kind == static_cast<int>(kind); });
    CostModel start = first_guess(300);
    start.store = store[kind];
    start.shared_byte = shared_byte;
    tune.models[kind] = fit_costs(of_kind, start);
  }
  progress("merges");
  const auto bf16 = static_cast<size_t>(tune.samples.front().kind);
  const double merge_float = measure_merge_float(isa, tune.models[bf16]);
  for (CostModel& model : tune.models) model.merge = merge_float;
  // Kinds that the ISA has no products of are served by the next one.
  for (size_t kind = tune.models.size() - 1; kind-- > 0;) {
    const bool measured = std::ranges::count(tune.samples, static_cast<int>(kind), &TuneSample::kind) > 0;
    if (!measured) tune.models[kind] = tune.models[kind + 1];
  }
  tune.error = median_error(tune.samples, tune.models, -1, true);
  return tune;
}

std::string tune_text(const Tune& tune, const std::string& cpu) {
  std::string text = fmt::format(
      "# pagemill tune {}: {}, {} threads; nanoseconds of one thread\nisa {}\nthreads {}\nerror {:.4g}\n",
      pm_version(), cpu, tune.threads, tune.isa, tune.threads, tune.error);
  for (size_t kind = 0; kind < tune.models.size(); ++kind) {
    for (const CostField& field : kCostFields) {
      text += fmt::format("{}.{} {:.4g}\n", kCostKinds[kind], field.name, tune.models[kind].*field.value);
    }
  }
  return text;
}

void write_file_at_once(const std::string& path, const std::string& text) {
  const std::filesystem::path target(path);
  std::error_code error;
  if (target.has_parent_path()) std::filesystem::create_directories(target.parent_path(), error);
  const std::string part = fmt::format("{}.{}.part", path, getpid());
  std::ofstream file(part);
  file << text;
  file.close();
  if (!file) throw std::runtime_error(fmt::format("{}: {}", part, std::strerror(errno)));
  std::filesystem::rename(part, target, error);
  if (error) {
    std::filesystem::remove(part);
    throw std::runtime_error(fmt::format("{}: {}", path, error.message()));
  }
}

}  // namespace pagemill
