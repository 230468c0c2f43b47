// Prompts from files.
#ifndef PAGEMILL_TOOLS_PROMPTS_H_
#define PAGEMILL_TOOLS_PROMPTS_H_

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace pagemill {

struct Prompt {
  std::string text;
  std::optional<int> max_tokens = {};  // of this one alone
};

// The whole file. Throws std::runtime_error that names it.
std::string read_file(const std::string& path);
// Calls use() with each line of a file of JSON objects, one a line; "-" is the standard input. What use() or
// the parser throws becomes a std::runtime_error that names file and line.
void for_each_json(const std::string& path, const std::function<void(const nlohmann::json&)>& use);

// *.jsonl: objects with "prompt"; "file", a path from the folder of the prompts, whose contents come before
// the prompt, an empty line between them; "max_tokens". Any other file: a prompt a line, empty ones skipped.
std::vector<Prompt> read_prompts(const std::string& path);

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_PROMPTS_H_
