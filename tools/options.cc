#include "options.h"

#include <CLI/CLI.hpp>
#include <map>

namespace pagemill {
namespace {

template <class Value>
using Names = std::map<std::string, Value>;
const Names<pm_dtype> kDtypes = {{"f32", PM_F32}, {"bf16", PM_BF16}, {"f16", PM_F16}};
const Names<pm_dtype> kCacheDtypes = {
    {"f32", PM_F32}, {"bf16", PM_BF16}, {"f16", PM_F16}, {"f8e4m3", PM_F8E4M3}, {"f8e5m2", PM_F8E5M2}};
const Names<pm_layout> kLayouts = {{"tiles", PM_TILES}, {"rows", PM_ROWS}};

template <class Value, class Target>
void add_named(CLI::App& app, const std::string& flag, const Names<Value>& names, Target& target,
               const std::string& text) {
  const auto set = [&target, &names](const std::string& name) { target = names.at(name); };
  app.add_option_function<std::string>(flag, set, text)->check(CLI::IsMember(&names));
}

}  // namespace

void add_dtype(CLI::App& app, const std::string& flag, pm_dtype& target, const std::string& text) {
  add_named(app, flag, kDtypes, target, text);
}

void add_cache_dtype(CLI::App& app, std::optional<pm_dtype>& target, const std::string& text) {
  add_named(app, "--cache-dtype", kCacheDtypes, target, text);
}

void add_layout(CLI::App& app, pm_layout& target) {
  add_named(app, "--layout", kLayouts, target, "Of the cache (tiles)");
}

const char* layout_name(pm_layout layout) {
  return layout == PM_TILES ? "tiles" : "rows";
}

}  // namespace pagemill
