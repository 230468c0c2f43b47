// Which requests compute which tokens in a step, and on which pages. Knows neither model nor text.
//
// Continuous batching: decodes first, then prefills in chunks of what is left of the token budget, then
// waiting requests in the order of their arrival, each as soon as all of its tokens so far fit into free
// pages. Where a running request needs a page and none is free, the one admitted last gives up its own and
// waits, first in line, to be computed again. The one admitted first always advances, so every request ends.
#ifndef PAGEMILL_ENGINE_SCHEDULER_H_
#define PAGEMILL_ENGINE_SCHEDULER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "pages.h"

namespace pagemill::engine {

struct Limits {
  int32_t page_size;  // tokens
  int32_t pages;
  int32_t token_budget;  // tokens of a step
  int32_t max_seqs;      // that run at once
  int32_t logit_rows;    // of a step, at least max_seqs
  bool prefix_cache;
};

// What the model computes at once. B sequences, T tokens, sequences end to end.
struct Step {
  struct Piece {
    int64_t id;
    int32_t first, count;  // tokens of the sequence that this step computes
    int32_t logits_first,
        logits;  // positions whose logits it wants; their rows follow those of the pieces before
  };
  std::vector<Piece> pieces;         // [B]
  std::vector<int32_t> tokens;       // [T]
  std::vector<int32_t> positions;    // [T]
  std::vector<int32_t> query_start;  // [B + 1]
  std::vector<int32_t> kv_len;       // [B]
  std::vector<int32_t> page_table;   // [B, pages_per_seq]
  int32_t pages_per_seq = 0;
  std::vector<int32_t> logit_rows;  // [R] rows of T whose logits are wanted
};

class Scheduler {
 public:
  explicit Scheduler(const Limits& limits);

  // tokens: those of the prompt, at least one. logits_from: the first position whose logits are wanted.
  // Sequences that can outgrow the cache are the caller's mistake: they would wait for ever.
  void add(int64_t id, std::vector<int32_t> tokens, int32_t logits_from);
  // The next token of a sequence all of whose tokens are computed.
  void append(int64_t id, int32_t token);
  void remove(int64_t id);

  // The next step; from now on its tokens count as computed. No pieces: nothing is left to compute. Valid
  // until the next call.
  const Step& next();

  const std::vector<int32_t>& tokens(int64_t id) const { return sequences_.at(id)->tokens; }
  bool idle() const { return running_.empty() && waiting_.empty(); }
  const PagePool& pool() const { return pool_; }
  std::vector<std::vector<int32_t>> held_pages() const;  // of each sequence, in order
  int64_t hit_tokens() const { return hit_tokens_; }
  int64_t preemptions() const { return preemptions_; }
  int32_t peak_pages() const { return peak_pages_; }

 private:
  struct Sequence {
    int64_t id;
    std::vector<int32_t> tokens;
    int32_t logits_from;       // first position whose logits are still wanted
    int32_t computed = 0;      // tokens whose keys and values lie in pages
    int32_t now = 0;           // tokens of the step that is being made
    int32_t published = 0;     // pages, from the first, that are shared or may be
    BlockId block = kNoBlock;  // of the last of them
    std::vector<int32_t> pages;

    int32_t size() const { return static_cast<int32_t>(tokens.size()); }
    int32_t left() const { return size() - computed; }
  };

  void schedule_running(bool decodes);
  void admit();
  bool take_hits(Sequence& sequence);
  int32_t chunk(const Sequence& sequence) const;
  void schedule(Sequence& sequence, int32_t count);
  bool grow(Sequence& sequence, int32_t tokens);
  void publish(Sequence& sequence);
  void preempt_last();
  void give_up_pages(Sequence& sequence);
  void assemble();
  int32_t wanted(const Sequence& sequence, int32_t count) const;
  std::span<const int32_t> block_tokens(const Sequence& sequence, int32_t block) const;

  Limits limits_;
  PagePool pool_;
  std::unordered_map<int64_t, std::unique_ptr<Sequence>> sequences_;
  std::vector<Sequence*> running_;  // in the order of their admission
  std::deque<Sequence*> waiting_;
  Step step_;
  int32_t budget_ = 0, rows_ = 0;  // tokens and rows of logits left for the step that is being made
  bool preempted_ = false;         // in the step that is being made
  int64_t hit_tokens_ = 0, preemptions_ = 0;
  int32_t peak_pages_ = 0;
};

}  // namespace pagemill::engine

#endif  // PAGEMILL_ENGINE_SCHEDULER_H_
