#include "trace.h"

#include <fmt/core.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace pagemill {
namespace {

using nlohmann::json;

constexpr int64_t kMaxLength = int64_t{1} << 30;  // tokens

std::string quote(std::string_view text) {
  constexpr size_t kShown = 80;
  return text.size() <= kShown ? fmt::format("\"{}\"", text)
                               : fmt::format("\"{}...\"", text.substr(0, kShown));
}

template <class T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// Seconds from "2023-11-16 18:15:46.6805900", perhaps with "+00:00" behind.
std::optional<double> parse_date(const std::string& text) {
  int year, hour, minute, used = 0;
  unsigned month, day;
  double second;
  if (std::sscanf(text.c_str(), "%d-%u-%u %d:%d:%lf%n", &year, &month, &day, &hour, &minute, &second,
                  &used) != 6) {
    return std::nullopt;
  }
  const std::string_view rest = std::string_view(text).substr(used);
  const std::chrono::year_month_day date{std::chrono::year{year}, std::chrono::month{month},
                                         std::chrono::day{day}};
  const bool valid =
      date.ok() && hour >= 0 && hour < 24 && minute >= 0 && minute < 60 && second >= 0 && second < 61;
  if (!valid || (!rest.empty() && rest != "+00:00")) return std::nullopt;
  const std::chrono::sys_days days(date);
  return 86400.0 * days.time_since_epoch().count() + 3600.0 * hour + 60.0 * minute + second;
}

// Three names.
bool is_header(const std::vector<std::string>& fields) {
  const auto named = [](const std::string& field) {
    return !field.empty() && std::isalpha(static_cast<unsigned char>(field[0]));
  };
  return fields.size() == 3 && std::ranges::all_of(fields, named);
}

class Reader {
 public:
  explicit Reader(const std::string& path) : trace_{path, {}} {}

  Trace read() {
    std::ifstream file(trace_.path);
    if (!file) throw std::runtime_error(fmt::format("{}: {}", trace_.path, std::strerror(errno)));
    const bool jsonl =
        trace_.path.ends_with(".jsonl") || (!trace_.path.ends_with(".csv") && file.peek() == '{');
    for (std::string text; std::getline(file, text);) {
      ++line_;
      if (!jsonl && file.eof()) fail("cut: expected a line break after " + quote(text));
      if (text.ends_with('\r')) text.pop_back();
      jsonl ? read_object(text) : read_row(text);
    }
    if (file.bad()) throw std::runtime_error(fmt::format("{}: {}", trace_.path, std::strerror(errno)));
    line_ = std::max(line_, 1);
    if (trace_.requests.empty()) fail("expected at least one request");
    return std::move(trace_);
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const {
    throw std::runtime_error(fmt::format("{}:{}: {}", trace_.path, line_, reason));
  }

  void read_row(const std::string& text) {
    if (text.starts_with('#')) return;
    std::vector<std::string> fields;
    for (size_t begin = 0; begin <= text.size();) {
      const size_t end = std::min(text.find(',', begin), text.size());
      fields.push_back(text.substr(begin, end - begin));
      begin = end + 1;
    }
    if (trace_.requests.empty() && !header_seen_ && is_header(fields)) {
      header_seen_ = true;
      return;
    }
    if (fields.size() == 3) {
      auto arrival = parse_number<double>(fields[0]);
      if (!arrival) arrival = parse_date(fields[0]);
      const auto prompt = parse_number<int64_t>(fields[1]), output = parse_number<int64_t>(fields[2]);
      if (arrival && prompt && output) {
        return add(*arrival, {*prompt, *output, {}, line_}, "context tokens", "generated tokens");
      }
    }
    fail("expected three numbers, got " + quote(text));
  }

  void read_object(const std::string& text) {
    const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object()) fail("expected a JSON object, got " + quote(text));
    if (line_ == 1 && !object.empty() && object.begin().key().starts_with('_')) return read_notes(object);
    Request request{integer(object, "input_length"), integer(object, "output_length"), {}, line_};
    if (object.contains("hash_ids")) {
      const json& ids = object["hash_ids"];
      if (!ids.is_array()) fail("hash_ids: expected an array");
      for (const json& id : ids) {
        if (!id.is_number_integer()) fail("hash_ids: expected integers, got " + id.dump());
        request.blocks.push_back(id.get<int64_t>());
      }
      const int64_t expected = (request.prompt + kTraceBlock - 1) / kTraceBlock;
      if (std::ssize(request.blocks) != expected) {
        fail(fmt::format("hash_ids: expected {} for input_length {}, got {}", expected, request.prompt,
                         request.blocks.size()));
      }
    }
    add(number(object, "timestamp") / 1000, std::move(request), "input_length", "output_length");
  }

  // The object of `_` keys in front.
  void read_notes(const json& object) const {
    const json& block = object.value("_block_size", json(kTraceBlock));
    if (block != kTraceBlock)
      fail(fmt::format("_block_size: expected {}, got {}", kTraceBlock, block.dump()));
  }

  const json& field(const json& object, const char* key) const {
    if (!object.contains(key)) fail(fmt::format("expected the key {}", key));
    return object[key];
  }
  double number(const json& object, const char* key) const {
    const json& value = field(object, key);
    if (!value.is_number()) fail(fmt::format("{}: expected a number, got {}", key, value.dump()));
    return value.get<double>();
  }
  int64_t integer(const json& object, const char* key) const {
    const json& value = field(object, key);
    if (!value.is_number_integer()) fail(fmt::format("{}: expected an integer, got {}", key, value.dump()));
    return value.get<int64_t>();
  }

  void add(double arrival, Request request, const char* prompt_name, const char* output_name) {
    if (!std::isfinite(arrival)) fail("expected a finite arrival");
    if (!trace_.requests.empty() && arrival < last_arrival_) {
      fail(
          fmt::format("arrival {} s: expected at least the previous request's {} s", arrival, last_arrival_));
    }
    for (auto [name, tokens] :
         {std::pair{prompt_name, request.prompt}, std::pair{output_name, request.output}}) {
      if (tokens < 1 || tokens > kMaxLength) {
        fail(fmt::format("{} {}: expected 1 to {}", name, tokens, kMaxLength));
      }
    }
    last_arrival_ = arrival;
    trace_.requests.push_back(std::move(request));
  }

  Trace trace_;
  int line_ = 0;
  bool header_seen_ = false;
  double last_arrival_ = 0;  // seconds
};

}  // namespace

Trace read_trace(const std::string& path) {
  return Reader(path).read();
}

}  // namespace pagemill
