// What a replay prints: for people and for programs.
#ifndef PAGEMILL_TOOLS_REPLAY_REPORT_H_
#define PAGEMILL_TOOLS_REPLAY_REPORT_H_

#include <nlohmann/json.hpp>
#include <string>

#include "models.h"
#include "replay.h"

namespace pagemill {

// What was replayed.
struct ReplayTitle {
  std::string trace;
  Model model;
  ReplayOptions options;
};

std::string replay_table(const ReplayTitle& title, const ReplayReport& report);
nlohmann::ordered_json replay_json(const ReplayTitle& title, const ReplayReport& report);

// A warning, or "", if ratios above 1.02 can be: the keys and values of the steps lie in the caches of the
// CPU. Otherwise they are a measuring error, which throws std::runtime_error.
std::string judge_ratios(const ReplayReport& report);

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_REPLAY_REPORT_H_
