#include "scheduler.h"

#include <algorithm>
#include <cassert>

namespace pagemill::engine {

Scheduler::Scheduler(const Limits& limits) : limits_(limits), pool_(limits.pages) {}

void Scheduler::add(int64_t id, std::vector<int32_t> tokens, int32_t logits_from) {
  auto sequence = std::make_unique<Sequence>();
  sequence->id = id;
  sequence->tokens = std::move(tokens);
  sequence->logits_from = logits_from;
  waiting_.push_back(sequence.get());
  sequences_.emplace(id, std::move(sequence));
}

void Scheduler::append(int64_t id, int32_t token) {
  Sequence& sequence = *sequences_.at(id);
  assert(sequence.left() == 0);
  sequence.tokens.push_back(token);
}

void Scheduler::remove(int64_t id) {
  const auto found = sequences_.find(id);
  Sequence* sequence = found->second.get();
  give_up_pages(*sequence);
  std::erase(running_, sequence);
  std::erase(waiting_, sequence);
  sequences_.erase(found);
}

const Step& Scheduler::next() {
  budget_ = limits_.token_budget;
  rows_ = limits_.logit_rows;
  preempted_ = false;
  schedule_running(true);
  schedule_running(false);
  // Only now is it certain that these tokens are computed. Requests admitted below may share them at once,
  // because all writes of a step come before its reads.
  for (Sequence* sequence : running_) publish(*sequence);
  if (!preempted_) admit();
  peak_pages_ = std::max(peak_pages_, pool_.pages() - pool_.available());
  assemble();
  return step_;
}

void Scheduler::schedule_running(bool decodes) {
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.now > 0 || (sequence.left() == 1) != decodes) continue;
    const int32_t count = chunk(sequence);
    if (count == 0) continue;
    while (i < running_.size() && !grow(sequence, sequence.computed + count)) preempt_last();
    if (i < running_.size()) schedule(sequence, count);
  }
}

void Scheduler::admit() {
  while (!waiting_.empty() && budget_ > 0 && std::ssize(running_) < limits_.max_seqs) {
    Sequence& sequence = *waiting_.front();
    if (!take_hits(sequence)) return;
    waiting_.pop_front();
    running_.push_back(&sequence);
    [[maybe_unused]] const bool grown = grow(sequence, sequence.size());
    assert(grown);
    schedule(sequence, chunk(sequence));
    publish(sequence);
  }
}

// Takes hold of the pages that have the sequence's first tokens already, if the others fit into what is free.
bool Scheduler::take_hits(Sequence& sequence) {
  const int32_t usable = limits_.prefix_cache ? std::min(sequence.logits_from, sequence.size() - 1) : 0;
  int32_t hits = 0, idle = 0;
  BlockId block = kNoBlock;
  while ((hits + 1) * limits_.page_size <= usable) {
    const auto look = pool_.look(block, block_tokens(sequence, hits));
    if (!look) break;
    idle += !look->held;
    block = look->block;
    ++hits;
  }
  const int32_t needed = (sequence.size() + limits_.page_size - 1) / limits_.page_size - hits;
  if (needed + idle > pool_.available()) return false;
  for (; sequence.published < hits; ++sequence.published) {
    const auto hit = pool_.share(sequence.block, block_tokens(sequence, sequence.published));
    if (!hit) break;
    sequence.pages.push_back(hit->page);
    sequence.block = hit->block;
  }
  sequence.computed = sequence.published * limits_.page_size;
  hit_tokens_ += sequence.computed;
  return true;
}

// Rows of logits that the next `count` tokens of the sequence ask for.
int32_t Scheduler::wanted(const Sequence& sequence, int32_t count) const {
  return std::max(0, sequence.computed + count - std::max(sequence.computed, sequence.logits_from));
}

int32_t Scheduler::chunk(const Sequence& sequence) const {
  const int32_t count = std::min(sequence.left(), budget_);
  return count - std::max(0, wanted(sequence, count) - rows_);
}

void Scheduler::schedule(Sequence& sequence, int32_t count) {
  sequence.now = count;
  budget_ -= count;
  rows_ -= wanted(sequence, count);
}

bool Scheduler::grow(Sequence& sequence, int32_t tokens) {
  while (std::ssize(sequence.pages) * limits_.page_size < tokens) {
    const auto page = pool_.take();
    if (!page) return false;
    sequence.pages.push_back(*page);
  }
  return true;
}

void Scheduler::publish(Sequence& sequence) {
  if (!limits_.prefix_cache) return;
  while ((sequence.published + 1) * limits_.page_size <= sequence.computed + sequence.now) {
    sequence.block = pool_.publish(sequence.pages[sequence.published], sequence.block,
                                   block_tokens(sequence, sequence.published));
    ++sequence.published;
  }
}

std::span<const int32_t> Scheduler::block_tokens(const Sequence& sequence, int32_t block) const {
  return std::span(sequence.tokens).subspan(size_t(block) * limits_.page_size, limits_.page_size);
}

void Scheduler::preempt_last() {
  Sequence& sequence = *running_.back();
  budget_ += sequence.now;
  rows_ += wanted(sequence, sequence.now);
  sequence.now = 0;
  give_up_pages(sequence);
  running_.pop_back();
  waiting_.push_front(&sequence);
  preempted_ = true;
  ++preemptions_;
}

void Scheduler::give_up_pages(Sequence& sequence) {
  // The end of a prefix is of no use without its beginning, so it is the first to be forgotten.
  while (!sequence.pages.empty()) {
    pool_.release(sequence.pages.back());
    sequence.pages.pop_back();
  }
  sequence.computed = 0;
  sequence.published = 0;
  sequence.block = kNoBlock;
}

void Scheduler::assemble() {
  step_ = {};
  step_.query_start.push_back(0);
  for (Sequence* sequence : running_) {
    if (sequence->now == 0) continue;
    const int32_t first = sequence->computed, end = first + sequence->now;
    const int32_t logits_first = std::clamp(sequence->logits_from, first, end);
    step_.pieces.push_back({sequence->id, first, sequence->now, logits_first, end - logits_first});
    for (int32_t i = first; i < end; ++i) {
      if (i >= logits_first) step_.logit_rows.push_back(static_cast<int32_t>(step_.tokens.size()));
      step_.tokens.push_back(sequence->tokens[i]);
      step_.positions.push_back(i);
    }
    step_.query_start.push_back(static_cast<int32_t>(step_.tokens.size()));
    step_.kv_len.push_back(end);
    step_.pages_per_seq = std::max(step_.pages_per_seq, static_cast<int32_t>(sequence->pages.size()));
    sequence->logits_from = std::max(sequence->logits_from, end);
    sequence->computed = end;
    sequence->now = 0;
  }
  for (const Step::Piece& piece : step_.pieces) {
    const std::vector<int32_t>& pages = sequences_.at(piece.id)->pages;
    step_.page_table.insert(step_.page_table.end(), pages.begin(), pages.end());
    step_.page_table.resize(step_.page_table.size() + step_.pages_per_seq - pages.size());
  }
}

std::vector<std::vector<int32_t>> Scheduler::held_pages() const {
  std::vector<std::vector<int32_t>> held;
  held.reserve(sequences_.size());
  for (const auto& [id, sequence] : sequences_) held.push_back(sequence->pages);
  return held;
}

}  // namespace pagemill::engine
