#include "generate.h"

#include <chrono>
#include <unordered_map>
#include <utility>

#include "interrupt.h"

namespace pagemill {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

const char* finish_name(engine::Finish finish) {
  switch (finish) {
    case engine::Finish::kNone: return "none";
    case engine::Finish::kEnd: return "end";
    case engine::Finish::kStop: return "stop";
    case engine::Finish::kLength: return "length";
    case engine::Finish::kCancelled: break;
  }
  return "cancelled";
}

void run_batch(engine::Engine& engine, std::vector<engine::Request> requests, std::vector<Answer>& answers,
               const std::function<void(const engine::Event&, size_t i)>& on_event) {
  const double begin = now();
  std::unordered_map<int64_t, size_t> index;
  for (size_t i = 0; i < requests.size(); ++i) {
    answers[i].prompt_tokens = static_cast<int>(requests[i].prompt.size());
    index[engine.add(std::move(requests[i]))] = i;
  }
  bool cancelled = false;
  while (!engine.idle()) {
    if (interrupted() && !cancelled) {
      for (const auto& [id, i] : index) engine.cancel(id);
      cancelled = true;
    }
    for (const engine::Event& event : engine.step()) {
      const size_t i = index.at(event.request);
      Answer& answer = answers[i];
      answer.text += event.text;
      answer.finish = event.finish;
      if (event.token) {
        answer.tokens.push_back(*event.token);
        answer.logprobs.push_back(event.logprob);
        answer.token_seconds.push_back(now() - begin);
      }
      on_event(event, i);
    }
  }
}

}  // namespace pagemill
