#include "plan/costs.h"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <vector>

#include "api/log.h"
#include "dispatch/cpu.h"

namespace pagemill {
namespace {

struct Defaults {
  const char* isa;
  CostModel of[std::size(kCostKinds)];
};

// Fitted by `pagemill tune` on an AMD EPYC with Zen 4 cores, two threads; in the order of kCostFields.
// f32f16 has the numbers of f32bf16. The last number, `widen`, is of an Intel Xeon with AMX.
constexpr Defaults kDefaults[] = {
    {"avx512bf16",
     {{1, 0.383, 0.0411, 0.0573, 0.0847, 0.0788, 0.939, 0.0103, 0.447, 0.264, 0.038},
      {330, 0.0257, 0.0495, 0.0573, 0.104, 0.0189, 0.0428, 0.0392, 0.447, 0.408, 0.053},
      {330, 0.0257, 0.0495, 0.0573, 0.104, 0.0189, 0.0428, 0.0392, 0.447, 0.408, 0.053},
      {313, 0.001, 0.0508, 0.0573, 0.101, 0.125, 0.215, 0.0339, 0.447, 0.581, 0.053}}},
    {"avx512",
     {{330, 0.0257, 0.0495, 0.0573, 0.104, 0.0189, 0.0428, 0.0392, 0.447, 0.408, 0.053},
      {330, 0.0257, 0.0495, 0.0573, 0.104, 0.0189, 0.0428, 0.0392, 0.447, 0.408, 0.053},
      {330, 0.0257, 0.0495, 0.0573, 0.104, 0.0189, 0.0428, 0.0392, 0.447, 0.408, 0.053},
      {313, 0.001, 0.0508, 0.0573, 0.101, 0.125, 0.215, 0.0339, 0.447, 0.581, 0.053}}},
    {"avx2",
     {{1, 0.306, 0.0703, 0.0573, 0.0672, 0.0152, 0.692, 0.043, 0.227, 0.63, 0.083},
      {1, 0.306, 0.0703, 0.0573, 0.0672, 0.0152, 0.692, 0.043, 0.227, 0.63, 0.083},
      {1, 0.306, 0.0703, 0.0573, 0.0672, 0.0152, 0.692, 0.043, 0.227, 0.63, 0.083},
      {94.4, 0.556, 0.0535, 0.0573, 0.113, 0.0969, 0.315, 0.0364, 0.227, 0.711, 0.083}}},
    {"scalar",
     {{518, 1.46, 0.06, 0.0573, 0.344, 0.0413, 3.24, 0.621, 0.693, 1.15, 1},
      {518, 1.46, 0.06, 0.0573, 0.344, 0.0413, 3.24, 0.621, 0.693, 1.15, 1},
      {518, 1.46, 0.06, 0.0573, 0.344, 0.0413, 3.24, 0.621, 0.693, 1.15, 1},
      {643, 1.27, 0.06, 0.0573, 0.372, 0.001, 0.001, 0.543, 0.693, 0.766, 1}}},
};
constexpr double kDefaultThreads = 2;

// A key of the file and where its value goes.
struct Entry {
  std::string key;
  double* value;
  bool seen = false;
};

std::vector<Entry> entries_of(Costs& costs) {
  std::vector<Entry> entries{{"threads", &costs.threads}, {"error", &costs.error}};
  for (size_t kind = 0; kind < std::size(kCostKinds); ++kind) {
    for (const CostField& field : kCostFields) {
      entries.push_back({std::string(kCostKinds[kind]) + "." + field.name, &(costs.of[kind].*field.value)});
    }
  }
  return entries;
}

bool parse_number(const std::string& text, double& value) {
  constexpr double kMost = 1e9;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value > 0 && value <= kMost;
}

std::string home_of_tunes() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache && *cache == '/') return std::string(cache) + "/pagemill/";
  const char* home = std::getenv("HOME");
  return home && *home == '/' ? std::string(home) + "/.cache/pagemill/" : "";
}

std::string path_for(const Isa& isa) {
  if (const char* path = std::getenv("PAGEMILL_TUNE")) return path;
  const std::string home = home_of_tunes();
  return home.empty() ? "" : home + cpu_model().append("-").append(isa.name).append(".tune");
}

Costs read_costs(const Isa& isa) {
  Costs costs = default_costs(isa);
  costs.path = path_for(isa);
  std::ifstream file(costs.path);
  if (costs.path.empty() || !file) return costs;
  std::ostringstream text;
  text << file.rdbuf();
  costs.problem = parse_costs(text.str(), isa, costs);
  if (logging("tune")) {
    std::fprintf(stderr, "pagemill: tune: %s: %s\n", costs.path.c_str(),
                 costs.tuned ? "read" : costs.problem.c_str());
  }
  return costs;
}

}  // namespace

CostModel Costs::model(Mma mma, int32_t n) const {
  CostModel model = of[static_cast<size_t>(mma)];
  model.byte = std::max(model.byte, model.shared_byte * std::min(1.0, n / threads));
  return model;
}

Costs default_costs(const Isa& isa) {
  Costs costs;
  costs.threads = kDefaultThreads;
  for (const Isa* i = &isa; i; i = i->includes) {
    for (const Defaults& defaults : kDefaults) {
      if (std::strcmp(defaults.isa, i->name) != 0) continue;
      std::copy(std::begin(defaults.of), std::end(defaults.of), costs.of.begin());
      return costs;
    }
  }
  return costs;
}

std::string parse_costs(std::string_view text, const Isa& isa, Costs& costs) {
  Costs read = costs;
  std::vector<Entry> entries = entries_of(read);
  bool right_isa = false;
  std::istringstream lines{std::string(text)};
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    std::istringstream words(line);
    std::string key, value, more;
    if (!(words >> key) || key[0] == '#') continue;
    const auto wrong = [&](const std::string& what) {
      std::ostringstream message;
      message << "line " << number << ": " << key << " " << value << ": expected " << what;
      return message.str();
    };
    if (!(words >> value) || words >> more) return wrong("a key and a value");
    if (key == "isa") {
      if (value != isa.name) return wrong(isa.name);
      right_isa = true;
      continue;
    }
    const auto entry =
        std::find_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.key == key; });
    if (entry == entries.end()) return wrong("a known key");
    if (entry->seen) return wrong("each key once");
    if (!parse_number(value, *entry->value)) return wrong("a number above 0, up to 1e9");
    entry->seen = true;
  }
  if (!text.empty() && text.back() != '\n') return "no newline at the end: expected a whole file";
  if (!right_isa) return std::string("no line isa: expected isa ") + isa.name;
  for (const Entry& entry : entries) {
    if (!entry.seen) return "no line " + entry.key + ": expected one (made by an older `pagemill tune`?)";
  }
  if (read.threads < 1) return "threads " + std::to_string(read.threads) + ": expected at least 1";
  read.tuned = true;
  costs = read;
  return "";
}

const Costs& costs_of(const Isa& isa) {
  static const std::vector<Costs> all = [] {
    std::vector<Costs> costs;
    costs.reserve(static_cast<size_t>(isa_count()));
    for (int32_t i = 0; i < isa_count(); ++i) costs.push_back(read_costs(isa_at(i)));
    return costs;
  }();
  for (int32_t i = 0; i < isa_count(); ++i) {
    if (&isa_at(i) == &isa) return all[static_cast<size_t>(i)];
  }
  return all.back();
}

}  // namespace pagemill
