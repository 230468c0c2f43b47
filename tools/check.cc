// `pagemill check`: random cases against fp64 on every ISA of the machine.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "cases.h"
#include "commands.h"
#include "reference.h"
#include "workload.h"

namespace pagemill {
namespace {

struct Options {
  int64_t cases = 1000;
  uint64_t seed = 1;
  std::string isa;
};

// What the cases of one mixture of q and key dtypes came to.
struct Tally {
  int64_t cases = 0, rows = 0;
  std::vector<Verdict> worst;  // [isas]
};

constexpr pm_dtype kDtypes[] = {PM_F32, PM_BF16, PM_F16, PM_F8E4M3, PM_F8E5M2};  // the last two of keys alone
using Tallies = std::array<std::array<Tally, std::size(kDtypes)>, std::size(kDtypes)>;

Verdict run_case(const Spec& spec) {
  Case c(spec);
  run(c);
  return verify(c);
}

void check_case(Spec spec, const std::vector<const char*>& isas, Tally& tally) {
  tally.worst.resize(isas.size());
  ++tally.cases;
  for (size_t i = 0; i < isas.size(); ++i) {
    spec.isa = isas[i];
    label_faults("faulting case: " + describe(spec));
    Verdict verdict;
    try {
      verdict = run_case(spec);
    } catch (const std::exception& error) {
      verdict.problem = error.what();
    }
    if (!verdict.problem.empty())
      throw std::runtime_error(
          fmt::format("{}\n  case: {}\n  again: pagemill check --cases 1 --seed {} --isa {}", verdict.problem,
                      describe(spec), spec.seed, spec.isa));
    tally.rows += verdict.rows;
    tally.worst[i].worst_out = std::max(tally.worst[i].worst_out, verdict.worst_out);
    tally.worst[i].worst_lse = std::max(tally.worst[i].worst_lse, verdict.worst_lse);
  }
}

void print_table(const Tallies& tallies, const std::vector<const char*>& isas) {
  fmt::print("worst error of out, and of lse, in units of the bound\n{:<13} {:>7} {:>10}", "q x keys",
             "cases", "rows");
  for (const char* isa : isas) fmt::print(" {:>13}", isa);
  fmt::print("\n");
  for (pm_dtype q : kDtypes)
    for (pm_dtype kv : kDtypes) {
      const Tally& tally = tallies[q][kv];
      if (tally.cases == 0) continue;
      fmt::print("{:<13} {:>7} {:>10}", fmt::format("{} x {}", dtype_name(q), dtype_name(kv)), tally.cases,
                 tally.rows);
      for (const Verdict& worst : tally.worst)
        fmt::print(" {:>13}", fmt::format("{:.3f} {:.3f}", worst.worst_out, worst.worst_lse));
      fmt::print("\n");
    }
}

void run_check(const Options& options) {
  std::vector<const char*> isas = available_isas();
  if (!options.isa.empty()) {
    std::erase_if(isas, [&](const char* isa) { return options.isa != isa; });
    if (isas.empty())
      throw UsageError(fmt::format("--isa {}: unknown, or this machine lacks it", options.isa));
  }
  const bool progress = isatty(STDERR_FILENO);
  Tallies tallies;
  for (int64_t i = 0; i < options.cases; ++i) {
    if (progress) fmt::print(stderr, "\r{} of {} cases", i, options.cases);
    Spec spec = random_spec(options.seed + uint64_t(i), Limits{});
    pm_dtype keys = spec.layout == PM_NO_CACHE ? spec.dtype : spec.cache_dtype;
    check_case(spec, isas, tallies[spec.dtype][keys]);
  }
  if (progress) fmt::print(stderr, "\r\033[K");
  print_table(tallies, isas);
  fmt::print("{} cases on {} ISAs: all within the bound\n", options.cases, isas.size());
}

}  // namespace

void add_check(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("check", "Compare random cases with an fp64 reference on every ISA");
  command->add_option("--cases", options->cases, "How many")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Seed of the first; the next have the next")
      ->capture_default_str();
  command->add_option("--isa", options->isa, "Only this one");
  command->callback([options] { run_check(*options); });
}

}  // namespace pagemill
