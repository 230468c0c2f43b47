#include "models.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <tuple>
#include <vector>

#include "commands.h"

namespace pagemill {
namespace {

// Layers, heads and head dims as in the models' published configurations; Gopher's from its paper, Table 1.
constexpr Model kModels[] = {
    {"llama3-8b", 32, 8, 128, 32},       //
    {"llama3-70b", 64, 8, 128, 80},      //
    {"qwen3-8b", 32, 8, 128, 36},        //
    {"gemma3-4b", 8, 4, 256, 34},        //
    {"gpt-oss-20b", 64, 8, 64, 24},      //
    {"smollm2-135m", 9, 3, 64, 30},      //
    {"gopher-44m", 16, 16, 32, 8},       //
    {"gopher-117m", 12, 12, 64, 12},     //
    {"gopher-417m", 12, 12, 128, 12},    //
    {"gopher-1.4b", 16, 16, 128, 24},    //
    {"gopher-7.1b", 32, 32, 128, 32},    //
    {"gopher-280b", 128, 128, 128, 80},  //
};

}  // namespace

std::span<const Model> models() {
  return kModels;
}

void ModelOption::add_to(CLI::App& app) {
  std::vector<std::string> names;
  for (const Model& model : kModels) names.emplace_back(model.name);
  auto* model = app.add_option("--model", name, "Shape of a known model")
                    ->check(CLI::IsMember(names))
                    ->capture_default_str();
  for (auto [flag, value, text] : {std::tuple{"--heads", &heads, "Query heads H, instead of --model"},
                                   std::tuple{"--kv-heads", &kv_heads, "KV heads K"},
                                   std::tuple{"--head-dim", &head_dim, "Head dim D"}}) {
    app.add_option(flag, *value, text)->check(CLI::Range(1, 4096))->excludes(model);
  }
}

Model ModelOption::resolve() const {
  if (heads || kv_heads || head_dim) {
    if (!heads || !kv_heads || !head_dim) {
      throw UsageError("--heads, --kv-heads and --head-dim: expected all three of them");
    }
    return {"custom", heads, kv_heads, head_dim, 1};
  }
  return *std::ranges::find(kModels, name, &Model::name);
}

}  // namespace pagemill
