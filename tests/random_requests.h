// Random sequences of what a scheduler's caller does, and what must hold between any two of them. For tests
// and fuzzing.
#ifndef PAGEMILL_TESTS_RANDOM_REQUESTS_H_
#define PAGEMILL_TESTS_RANDOM_REQUESTS_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "scheduler.h"

namespace pagemill::engine {

// Drives a scheduler by choices from outside. Throws std::logic_error that says which invariant is broken.
class RequestDriver {
 public:
  // choose(n): a number from 0 to n - 1.
  using Choose = std::function<uint32_t(uint32_t n)>;

  RequestDriver(const Limits& limits, Choose choose)
      : limits_(limits), choose_(std::move(choose)), scheduler_(limits), content_(limits.pages) {}

  void act() {
    switch (choose_(8)) {
      case 0:
      case 1: return add();
      case 2: return cancel();
      default: return step();
    }
  }

  // Steps until nothing is left; every request must come to its end.
  void drain() {
    for (int64_t steps = 0; !scheduler_.idle(); ++steps) {
      expect(steps < 200'000, "requests never end");
      step();
    }
    expect(requests_.empty(), "a request is lost");
    expect(scheduler_.pool().available() == limits_.pages, "a page is leaked");
  }

  const Scheduler& scheduler() const { return scheduler_; }

 private:
  struct Request {
    std::vector<int32_t> tokens;
    size_t length;       // tokens at its end
    int32_t next_logit;  // position of the next row of logits
  };
  // What a slot of the cache holds: the tokens up to it, as a number.
  using Prefix = uint64_t;

  static void expect(bool right, const char* what) {
    if (!right) throw std::logic_error(what);
  }

  void add() {
    const uint32_t most = static_cast<uint32_t>(limits_.pages) * limits_.page_size;
    const uint32_t length = 1 + choose_(most), prompt = 1 + choose_(length);
    Request request{{}, length, 0};
    // Few different tokens, so that prefixes repeat.
    const int32_t family = static_cast<int32_t>(choose_(3));
    for (uint32_t i = 0; i < prompt; ++i)
      request.tokens.push_back(choose_(40) == 0 ? int32_t(choose_(5)) : family);
    request.next_logit = choose_(4) == 0 ? int32_t(choose_(prompt)) : int32_t(prompt) - 1;
    scheduler_.add(next_, request.tokens, request.next_logit);
    requests_.emplace(next_++, std::move(request));
  }

  void cancel() {
    if (requests_.empty()) return;
    const auto victim = std::next(requests_.begin(), choose_(static_cast<uint32_t>(requests_.size())));
    scheduler_.remove(victim->first);
    requests_.erase(victim);
    check_holders();
  }

  void step() {
    const Step& step = scheduler_.next();
    expect(!step.pieces.empty() || requests_.empty(), "nothing to compute although requests are left");
    expect(std::ssize(step.tokens) <= limits_.token_budget, "more tokens than the budget");
    expect(std::ssize(step.logit_rows) <= limits_.logit_rows, "more rows of logits than the limit");
    expect(std::ssize(step.pieces) <= limits_.max_seqs, "more sequences than the limit");
    check_holders();
    write(step);
    read(step);
    const std::vector<Step::Piece> pieces = step.pieces;
    for (const Step::Piece& piece : pieces) finish(piece);
  }

  static Prefix extend(Prefix prefix, int32_t token) {
    return (prefix ^ uint64_t(token + 7)) * 0x9E3779B97F4A7C15u;
  }

  // Stores the new tokens: on pages that this sequence alone holds, each slot by one sequence.
  void write(const Step& step) {
    std::set<std::pair<int32_t, int32_t>> written;
    for (size_t b = 0; b < step.pieces.size(); ++b) {
      const Step::Piece& piece = step.pieces[b];
      const Request& request = requests_.at(piece.id);
      Prefix prefix = 0;
      for (int32_t i = 0; i < piece.first + piece.count; ++i) {
        prefix = extend(prefix, request.tokens[i]);
        if (i < piece.first) continue;
        expect(step.tokens[step.query_start[b] + i - piece.first] == request.tokens[i], "another token");
        expect(step.positions[step.query_start[b] + i - piece.first] == i, "another position");
        const int32_t page = page_of(step, b, i), slot = i % limits_.page_size;
        expect(written.emplace(page, slot).second, "two sequences write a slot");
        std::vector<Prefix>& slots = content_[page];
        slots.resize(limits_.page_size);
        slots[slot] = prefix;
      }
    }
    for (const auto& [page, slot] : written) {
      std::set<int64_t> writers;
      for (size_t b = 0; b < step.pieces.size(); ++b) {
        const Step::Piece& piece = step.pieces[b];
        for (int32_t p = piece.first / limits_.page_size;
             p <= (piece.first + piece.count - 1) / limits_.page_size; ++p)
          if (step.page_table[b * step.pages_per_seq + p] == page) writers.insert(piece.id);
      }
      expect(writers.size() == 1, "a page is shared for writing");
    }
  }

  // All that a sequence sees was computed from the tokens it has.
  void read(const Step& step) {
    for (size_t b = 0; b < step.pieces.size(); ++b) {
      const Request& request = requests_.at(step.pieces[b].id);
      Prefix prefix = 0;
      for (int32_t i = 0; i < step.kv_len[b]; ++i) {
        prefix = extend(prefix, request.tokens[i]);
        expect(content_[page_of(step, b, i)].at(i % limits_.page_size) == prefix, "a key of other tokens");
      }
    }
  }

  void finish(const Step::Piece& piece) {
    Request& request = requests_.at(piece.id);
    if (piece.logits > 0) {
      expect(piece.logits_first == request.next_logit, "logits are missing or come twice");
      request.next_logit += piece.logits;
    }
    if (piece.first + piece.count < std::ssize(request.tokens)) return;
    expect(request.next_logit == std::ssize(request.tokens), "logits of the last token are missing");
    if (request.tokens.size() >= request.length) {
      scheduler_.remove(piece.id);
      requests_.erase(piece.id);
    } else {
      request.tokens.push_back(static_cast<int32_t>(choose_(3)));
      scheduler_.append(piece.id, request.tokens.back());
    }
  }

  int32_t page_of(const Step& step, size_t b, int32_t position) const {
    const int32_t page = step.page_table[b * step.pages_per_seq + position / limits_.page_size];
    expect(page >= 0 && page < limits_.pages, "a page that does not exist");
    return page;
  }

  // Each page has as many holders as sequences hold it, and pages that nobody holds are there to be taken.
  void check_holders() const {
    std::vector<int32_t> holders(limits_.pages);
    for (const std::vector<int32_t>& pages : scheduler_.held_pages()) {
      std::set<int32_t> distinct(pages.begin(), pages.end());
      expect(distinct.size() == pages.size(), "a sequence holds a page twice");
      for (int32_t page : pages) ++holders[page];
    }
    int32_t unheld = 0;
    for (int32_t page = 0; page < limits_.pages; ++page) {
      expect(holders[page] == scheduler_.pool().holders(page), "a count of holders is wrong");
      unheld += holders[page] == 0;
    }
    expect(unheld == scheduler_.pool().available(), "an unheld page is not available");
  }

  Limits limits_;
  Choose choose_;
  Scheduler scheduler_;
  std::map<int64_t, Request> requests_;
  std::vector<std::vector<Prefix>> content_;  // [pages][page_size]
  int64_t next_ = 0;
};

}  // namespace pagemill::engine

#endif  // PAGEMILL_TESTS_RANDOM_REQUESTS_H_
