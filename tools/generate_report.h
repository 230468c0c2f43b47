// What `pagemill generate` shows while it runs, and of the run when it ends.
#ifndef PAGEMILL_TOOLS_GENERATE_REPORT_H_
#define PAGEMILL_TOOLS_GENERATE_REPORT_H_

#include <nlohmann/json_fwd.hpp>
#include <pagemill/engine.hpp>
#include <span>
#include <string>
#include <vector>

#include "generate.h"
#include "workload.h"

namespace pagemill {

// A line a request on the terminal behind stderr, redrawn in place; nothing if there is no terminal.
class LiveTable {
 public:
  explicit LiveTable(size_t rows);
  void draw(std::span<const Answer> answers, bool last);

 private:
  bool terminal_;
  int rows_;  // at most those that fit
  int drawn_ = 0;
  double drawn_at_ = 0;
};

struct Summary {
  int64_t prompt_tokens = 0, generated_tokens = 0;
  double seconds = 0;                   // in steps
  double prompt_rate = 0;               // prompt tokens, hits included, per second until the last first token
  double generated_rate = 0;            // per second in all
  double first_p50 = 0, first_p95 = 0;  // seconds until a request's first token
  double next_p50 = 0, next_p95 = 0;    // seconds between tokens
  double attention_share = 0;           // of the time in steps
  double mbu = 0, mfu = 0;              // 0 = no such steps
  engine::Stats stats;
};

// peak: of the same machine and threads.
Summary summarize(std::span<const Answer> answers, const engine::Stats& stats, const PeakRates& peak);
std::string describe(const Summary& summary);
nlohmann::json to_json(const Summary& summary);

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_GENERATE_REPORT_H_
