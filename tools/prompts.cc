#include "prompts.h"

#include <fmt/core.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>

namespace pagemill {
namespace {

namespace fs = std::filesystem;

std::ifstream open_file(const std::string& path) {
  if (fs::is_directory(path)) throw std::runtime_error(fmt::format("{}: is a folder: expected a file", path));
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(fmt::format("{}: {}", path, std::strerror(errno)));
  return file;
}

Prompt prompt_of(const nlohmann::json& line, const fs::path& folder) {
  Prompt prompt;
  if (line.contains("file")) prompt.text = read_file(folder / line.at("file").get<std::string>()) + "\n";
  prompt.text += line.at("prompt").get<std::string>();
  if (line.contains("max_tokens")) prompt.max_tokens = line.at("max_tokens").get<int>();
  return prompt;
}

}  // namespace

std::string read_file(const std::string& path) {
  std::ostringstream text;
  text << open_file(path).rdbuf();
  return text.str();
}

void for_each_json(const std::string& path, const std::function<void(const nlohmann::json&)>& use) {
  std::ifstream file;
  if (path != "-") file = open_file(path);
  std::istream& in = path == "-" ? std::cin : file;
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      use(nlohmann::json::parse(line));
    } catch (const std::exception& error) {
      throw std::runtime_error(fmt::format("{}:{}: {}", path, number, error.what()));
    }
  }
}

std::vector<Prompt> read_prompts(const std::string& path) {
  std::vector<Prompt> prompts;
  if (fs::path(path).extension() == ".jsonl") {
    const fs::path folder = fs::path(path).parent_path();
    for_each_json(path, [&](const nlohmann::json& line) { prompts.push_back(prompt_of(line, folder)); });
  } else {
    std::istringstream lines(read_file(path));
    for (std::string line; std::getline(lines, line);) {
      if (!line.empty() && line.back() == '\r') line.pop_back();
      if (!line.empty()) prompts.push_back({line});
    }
  }
  if (prompts.empty()) throw std::runtime_error(path + ": holds no prompts");
  return prompts;
}

}  // namespace pagemill
