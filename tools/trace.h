// Traces of LLM serving: requests in order of arrival, with their lengths in tokens.
#ifndef PAGEMILL_TOOLS_TRACE_H_
#define PAGEMILL_TOOLS_TRACE_H_

#include <cstdint>
#include <string>
#include <vector>

namespace pagemill {

// Tokens of the prompt that one id of Request::blocks stands for.
inline constexpr int kTraceBlock = 512;

struct Request {
  int64_t prompt = 0;           // tokens, from 1
  int64_t output = 0;           // tokens, from 1
  std::vector<int64_t> blocks;  // [ceil(prompt / kTraceBlock)] or empty: equal ids, equal keys and values
  int line = 0;                 // in the file, from 1
};

struct Trace {
  std::string path;
  std::vector<Request> requests;  // in order of arrival
};

// Reads a trace of Azure (CSV: arrival, context tokens, generated tokens) or Mooncake (one JSON object a
// line). The name's ending .csv or .jsonl tells which, else the first character. Throws std::runtime_error
// with file, line and reason for whatever is not exactly such a trace.
Trace read_trace(const std::string& path);

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_TRACE_H_
