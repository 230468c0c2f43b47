#include "generate_report.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

namespace pagemill {
namespace {

constexpr double kRedrawSeconds = 0.1;

double percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  const auto at = values.begin() + std::min<ptrdiff_t>(std::ssize(values) - 1, ptrdiff_t(p * values.size()));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

// The last characters of the text that fit, on one line.
std::string tail(std::string_view text, size_t width) {
  size_t begin = text.size(), characters = 0;
  while (begin > 0 && characters < width) {
    --begin;
    characters += (text[begin] & 0xC0) != 0x80;
  }
  std::string line(text.substr(begin));
  for (char& c : line)
    if (static_cast<unsigned char>(c) < ' ') c = ' ';
  return line;
}

}  // namespace

LiveTable::LiveTable(size_t rows) : terminal_(isatty(STDERR_FILENO)) {
  winsize size{};
  const bool known = terminal_ && ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 2;
  rows_ = std::min(static_cast<int>(rows), known ? size.ws_row - 2 : 20);
}

void LiveTable::draw(std::span<const Answer> answers, bool last) {
  if (!terminal_) return;
  const double now =
      std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  if (!last && now - drawn_at_ < kRedrawSeconds) return;
  drawn_at_ = now;
  if (drawn_ > 0) fmt::print(stderr, "\033[{}A", drawn_);
  for (int i = 0; i < rows_; ++i) {
    const Answer& answer = answers[i];
    const char* state = answer.finish != engine::Finish::kNone ? finish_name(answer.finish)
                        : answer.tokens.empty()                ? "prompt"
                                                               : "writes";
    fmt::print(stderr, "\r\033[K{:>3} {:>6} + {:<5} {:<9} {}\n", i + 1, answer.prompt_tokens,
               answer.tokens.size(), state, tail(answer.text, 50));
  }
  drawn_ = rows_;
}

Summary summarize(std::span<const Answer> answers, const engine::Stats& stats, const PeakRates& peak) {
  Summary s;
  s.stats = stats;
  s.seconds = stats.seconds;
  std::vector<double> first, next;
  for (const Answer& answer : answers) {
    s.prompt_tokens += answer.prompt_tokens;
    s.generated_tokens += std::ssize(answer.tokens);
    const std::vector<double>& at = answer.token_seconds;
    if (!at.empty()) first.push_back(at[0]);
    for (size_t i = 1; i < at.size(); ++i) next.push_back(at[i] - at[i - 1]);
  }
  const double prompts_done = first.empty() ? stats.seconds : *std::max_element(first.begin(), first.end());
  s.prompt_rate = prompts_done > 0 ? s.prompt_tokens / prompts_done : 0;
  s.generated_rate = stats.seconds > 0 ? s.generated_tokens / stats.seconds : 0;
  s.first_p50 = percentile(first, 0.5);
  s.first_p95 = percentile(first, 0.95);
  s.next_p50 = percentile(next, 0.5);
  s.next_p95 = percentile(next, 0.95);
  s.attention_share = stats.seconds > 0 ? stats.attention_seconds / stats.seconds : 0;
  if (stats.decode_attention_seconds > 0)
    s.mbu = stats.decode_bytes / stats.decode_attention_seconds / peak.read;
  if (stats.prefill_attention_seconds > 0)
    s.mfu = stats.prefill_flops / stats.prefill_attention_seconds / peak.flops;
  return s;
}

std::string describe(const Summary& s) {
  const auto ratio = [](double value) { return value > 0 ? fmt::format("{:.2f}", value) : std::string("-"); };
  return fmt::format(
      "prompts     {} tokens, {:.0f} a second; first token after {:.0f} ms (p50), {:.0f} ms (p95)\n"
      "generated   {} tokens, {:.0f} a second; {:.1f} ms (p50), {:.1f} ms (p95) between tokens\n"
      "attention   {:.0f}% of the time; MBU {} in decodes, MFU {} in prefills\n"
      "cache       {} prompt tokens found, at most {} of {} pages held, {} preemptions\n",
      s.prompt_tokens, s.prompt_rate, 1e3 * s.first_p50, 1e3 * s.first_p95, s.generated_tokens,
      s.generated_rate, 1e3 * s.next_p50, 1e3 * s.next_p95, 100 * s.attention_share, ratio(s.mbu),
      ratio(s.mfu), s.stats.prefix_hit_tokens, s.stats.peak_pages, s.stats.pages, s.stats.preemptions);
}

nlohmann::json to_json(const Summary& s) {
  return {{"prompt_tokens", s.prompt_tokens},
          {"generated_tokens", s.generated_tokens},
          {"seconds", s.seconds},
          {"prompt_tokens_per_second", s.prompt_rate},
          {"generated_tokens_per_second", s.generated_rate},
          {"first_token_seconds_p50", s.first_p50},
          {"first_token_seconds_p95", s.first_p95},
          {"next_token_seconds_p50", s.next_p50},
          {"next_token_seconds_p95", s.next_p95},
          {"attention_share", s.attention_share},
          {"attention_mbu", s.mbu},
          {"attention_mfu", s.mfu},
          {"prefix_hit_tokens", s.stats.prefix_hit_tokens},
          {"peak_pages", s.stats.peak_pages},
          {"pages", s.stats.pages},
          {"preemptions", s.stats.preemptions}};
}

}  // namespace pagemill
