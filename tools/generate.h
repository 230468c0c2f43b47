// Requests through an engine, timed.
#ifndef PAGEMILL_TOOLS_GENERATE_H_
#define PAGEMILL_TOOLS_GENERATE_H_

#include <cstdint>
#include <functional>
#include <pagemill/engine.hpp>
#include <string>
#include <vector>

namespace pagemill {

// One request from beginning to end.
struct Answer {
  std::string prompt;
  int prompt_tokens = 0;
  std::string text;
  std::vector<engine::Token> tokens;
  std::vector<float> logprobs;  // of tokens, 0 unless asked for
  engine::Finish finish = engine::Finish::kNone;
  std::vector<double> token_seconds;  // since the batch began
};

const char* finish_name(engine::Finish finish);

// Runs the requests as one batch, all added at once. answers: one for each request, with its prompt; filled
// in. on_event: after each event, which has been noted in answers[i]. Interrupted: what is left is cancelled.
void run_batch(engine::Engine& engine, std::vector<engine::Request> requests, std::vector<Answer>& answers,
               const std::function<void(const engine::Event&, size_t i)>& on_event);

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_GENERATE_H_
