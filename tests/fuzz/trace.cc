// Traces of any bytes: refused with file and line, or read as what they say, scheduled, and planned.
#include "trace.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

#include "bytes.h"
#include "schedule.h"

namespace pagemill {
namespace {

constexpr int64_t kLongest = 1 << 14;  // tokens of a request that is scheduled
constexpr int kMostSteps = 40;

std::string path_with(const char* ending) {
  static const auto folder = std::filesystem::temp_directory_path();
  return folder / fmt::format("fuzz_trace_{}{}", getpid(), ending);
}

void write(const std::string& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

void expect_sound(const Trace& trace) {
  demand(!trace.requests.empty(), "a trace without requests");
  int line = 0;
  for (const Request& r : trace.requests) {
    demand(r.prompt >= 1 && r.output >= 1, "a request without tokens");
    demand(r.line > line, "lines do not rise");
    demand(r.blocks.empty() || std::ssize(r.blocks) == (r.prompt + kTraceBlock - 1) / kTraceBlock,
           "another number of blocks");
    line = r.line;
  }
}

// What was read, written as JSONL and read again, is the same.
void expect_round_trip(const Trace& trace) {
  std::string text;
  for (const Request& r : trace.requests) {
    text += fmt::format(R"({{"timestamp": 0, "input_length": {}, "output_length": {})", r.prompt, r.output);
    if (!r.blocks.empty()) text += fmt::format(R"(, "hash_ids": [{}])", fmt::join(r.blocks, ","));
    text += "}\n";
  }
  const std::string path = path_with("_again.jsonl");
  write(path, text);
  const Trace again = read_trace(path);
  demand(again.requests.size() == trace.requests.size(), "another number of requests after a round trip");
  for (size_t i = 0; i < trace.requests.size(); ++i) {
    const Request &a = trace.requests[i], &b = again.requests[i];
    demand(a.prompt == b.prompt && a.output == b.output && a.blocks == b.blocks, "changed by a round trip");
  }
}

// Every step that the schedule makes of it is one that the library accepts.
void expect_planned(const Trace& trace) {
  ScheduleOptions options;
  options.pages = 2 * kLongest / options.page_size;
  options.budget = 700;
  pm_config config = PM_CONFIG_INIT;
  config.num_heads = config.num_kv_heads = 1;
  config.head_dim = 64;
  config.page_size = options.page_size;
  config.num_pages = options.pages;
  Schedule schedule(trace, options);
  Plan plan;
  for (int step = 0; step < kMostSteps && schedule.next(); ++step) {
    const Batch batch = schedule.batch();
    demand(batch.num_tokens <= options.budget, "a step beyond the budget");
    plan.build(config, batch);
  }
}

bool is_short(const Trace& trace) {
  for (const Request& r : trace.requests) {
    if (r.prompt + r.output > kLongest) return false;
  }
  return true;
}

void try_trace(const std::string& path) {
  Trace trace;
  try {
    trace = read_trace(path);
  } catch (const std::runtime_error& error) {
    demand(std::string_view(error.what()).starts_with(path + ":"),
           "refused without file and line:", error.what());
    return;
  }
  expect_sound(trace);
  expect_round_trip(trace);
  if (is_short(trace)) expect_planned(trace);
}

}  // namespace
}  // namespace pagemill

// Under each kind of name, which chooses how the bytes are read.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  for (const char* ending : {".csv", ".jsonl", ".txt"}) {
    const std::string path = pagemill::path_with(ending);
    pagemill::write(path, {reinterpret_cast<const char*>(data), size});
    pagemill::try_trace(path);
  }
  return 0;
}
