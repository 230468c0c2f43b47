#include "options.h"

#include <CLI/CLI.hpp>
#include <initializer_list>
#include <map>
#include <vector>

#include "workload.h"

namespace pagemill {
namespace {

template <class Value, class Target>
void add_named(CLI::App& app, const std::string& flag, std::initializer_list<Value> values,
               const char* (*name_of)(Value), Target& target, const std::string& text) {
  std::map<std::string, Value> by_name;
  std::vector<std::string> names;
  for (const Value value : values) {
    names.emplace_back(name_of(value));
    by_name[names.back()] = value;
  }
  const auto set = [&target, by_name](const std::string& name) { target = by_name.at(name); };
  app.add_option_function<std::string>(flag, set, text)->check(CLI::IsMember(names));
}

}  // namespace

void add_dtype(CLI::App& app, const std::string& flag, pm_dtype& target, const std::string& text) {
  add_named(app, flag, {PM_F32, PM_BF16, PM_F16}, dtype_name, target, text);
}

void add_dtype(CLI::App& app, const std::string& flag, std::optional<pm_dtype>& target,
               const std::string& text) {
  add_named(app, flag, {PM_F32, PM_BF16, PM_F16}, dtype_name, target, text);
}

void add_layout(CLI::App& app, pm_layout& target) {
  add_named(app, "--layout", {PM_TILES, PM_ROWS}, layout_name, target, "Of the cache (tiles)");
}

const char* layout_name(pm_layout layout) {
  return layout == PM_TILES ? "tiles" : "rows";
}

}  // namespace pagemill
