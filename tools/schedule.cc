#include "schedule.h"

#include <fmt/core.h>

#include <algorithm>
#include <cassert>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace pagemill {
namespace {

// Tokens that a request leaves in the cache: the last one it generates is never fed back.
int64_t cached_tokens(const Request& request) {
  return request.prompt + request.output - 1;
}

int64_t pages_for(int64_t tokens, int page_size) {
  return (tokens + page_size - 1) / page_size;
}

}  // namespace

PagePool::PagePool(int32_t pages, int pages_per_block)
    : total_(pages), pages_per_block_(pages_per_block), free_(pages) {
  std::iota(free_.rbegin(), free_.rend(), 0);
}

int64_t PagePool::count_hits(std::span<const int64_t> ids) const {
  return std::ranges::find_if_not(ids, [&](int64_t id) { return blocks_.contains(id); }) - ids.begin();
}

bool PagePool::take(std::span<const int64_t> hits, int64_t n, std::vector<int32_t>& pages) {
  const int64_t kept = std::ranges::count_if(hits, [&](int64_t id) { return blocks_.at(id).users == 0; });
  if (n > std::ssize(free_) + idle_pages() - kept * pages_per_block_) return false;
  for (int64_t id : hits) {
    Block& block = blocks_.at(id);
    if (block.users++ == 0) idle_.erase(block.idle);
    pages.insert(pages.end(), block.pages.begin(), block.pages.end());
  }
  while (std::ssize(free_) < n) {
    const auto oldest = blocks_.find(idle_.front());
    release_pages(oldest->second.pages);
    blocks_.erase(oldest);
    idle_.pop_front();
  }
  for (int64_t page : std::span(free_).last(n)) touched_ = std::max(touched_, page + 1);
  pages.insert(pages.end(), free_.rbegin(), free_.rbegin() + n);
  free_.resize(free_.size() - n);
  return true;
}

bool PagePool::share(int64_t id, std::span<const int32_t> pages) {
  assert(std::ssize(pages) == pages_per_block_);
  return blocks_.try_emplace(id, Block{{pages.begin(), pages.end()}, 1, idle_.end()}).second;
}

void PagePool::release_block(int64_t id) {
  Block& block = blocks_.at(id);
  if (--block.users == 0) block.idle = idle_.insert(idle_.end(), id);
}

void PagePool::release_pages(std::span<const int32_t> pages) {
  free_.insert(free_.end(), pages.rbegin(), pages.rend());
}

Schedule::Schedule(const Trace& trace, const ScheduleOptions& options)
    : trace_(trace),
      options_(options),
      pages_per_block_(kTraceBlock % options.page_size == 0 ? kTraceBlock / options.page_size : 0),
      pool_(options.pages, pages_per_block_),
      free_rows_(options.max_seqs) {
  for (const Request& r : trace.requests) {
    const int64_t pages = pages_for(cached_tokens(r), options.page_size);
    if (pages > options.pages) {
      throw std::runtime_error(
          fmt::format("{}:{}: a request of {} tokens needs {} pages of {} tokens, the cache has {}",
                      trace.path, r.line, cached_tokens(r), pages, options.page_size, options.pages));
    }
    table_width_ = std::max(table_width_, pages);
  }
  table_.resize(options.max_seqs * table_width_);
  std::iota(free_rows_.rbegin(), free_rows_.rend(), 0);
}

bool Schedule::next() {
  retire();
  step_ = {StepKind::mixed, {0}, {}, {}, {}};
  int64_t budget = options_.budget;
  const auto run_some = [&](Sequence& s, int64_t tokens) {
    tokens = std::clamp<int64_t>(tokens, 0, budget);
    budget -= tokens;
    if (tokens > 0) run(s, tokens);
  };
  for (Sequence& s : running_) {
    if (s.done >= request(s).prompt) run_some(s, 1);
  }
  const size_t decodes = step_.kv_len.size();
  for (Sequence& s : running_) run_some(s, request(s).prompt - s.done);
  while (budget > 0 && admit())
    run_some(running_.back(), request(running_.back()).prompt - running_.back().done);
  if (decodes == step_.kv_len.size()) {
    step_.kind = StepKind::decode;
  } else if (decodes == 0) {
    step_.kind = StepKind::prefill;
  }
  peak_pages_ = std::max(peak_pages_, pool_.used());
  assert(!running_.empty() || next_request_ == trace_.requests.size());
  return !running_.empty();
}

Batch Schedule::batch() const {
  Batch batch;
  batch.num_seqs = static_cast<int32_t>(step_.kv_len.size());
  batch.num_tokens = step_.query_start.back();
  batch.query_start = step_.query_start.data();
  batch.kv_len = step_.kv_len.data();
  batch.page_table = table_.data();
  batch.pages_per_seq = static_cast<int32_t>(table_width_);
  batch.page_table_rows = options_.max_seqs;
  batch.row_index = step_.row.data();
  return batch;
}

void Schedule::retire() {
  std::erase_if(running_, [&](const Sequence& s) {
    const Request& r = request(s);
    if (s.done < cached_tokens(r)) return false;
    // From the end, so that a block goes before those that only lead to it.
    for (int64_t i = s.blocks - 1; i >= 0; --i) {
      if (s.shared[i]) {
        pool_.release_block(r.blocks[i]);
      } else {
        pool_.release_pages(std::span(s.pages).subspan(i * pages_per_block_, pages_per_block_));
      }
    }
    pool_.release_pages(std::span(s.pages).subspan(s.blocks * pages_per_block_));
    free_rows_.push_back(s.row);
    ++finished_;
    return true;
  });
}

bool Schedule::admit() {
  if (next_request_ == trace_.requests.size() || free_rows_.empty()) return false;
  const Request& r = trace_.requests[next_request_];
  // At least the last token of a prompt is computed.
  const int64_t whole = r.blocks.empty() || pages_per_block_ == 0 ? 0 : (r.prompt - 1) / kTraceBlock;
  const int64_t hits = pool_.count_hits(std::span(r.blocks).first(whole));
  Sequence s{static_cast<int32_t>(next_request_), free_rows_.back(), hits * kTraceBlock, hits, {}, {}};
  const int64_t pages = pages_for(cached_tokens(r), options_.page_size) - hits * pages_per_block_;
  if (!pool_.take(std::span(r.blocks).first(hits), pages, s.pages)) return false;
  s.shared.assign(hits, true);
  std::ranges::copy(s.pages, table_.begin() + s.row * table_width_);
  free_rows_.pop_back();
  ++next_request_;
  hit_tokens_ += s.done;
  running_.push_back(std::move(s));
  return true;
}

void Schedule::run(Sequence& s, int64_t tokens) {
  s.done += tokens;
  step_.query_start.push_back(step_.query_start.back() + static_cast<int32_t>(tokens));
  step_.kv_len.push_back(static_cast<int32_t>(s.done));
  step_.row.push_back(s.row);
  step_.request.push_back(s.request);
  share_blocks(s);
}

void Schedule::share_blocks(Sequence& s) {
  const Request& r = request(s);
  if (r.blocks.empty() || pages_per_block_ == 0) return;
  const int64_t whole = std::min(s.done, r.prompt) / kTraceBlock;
  for (; s.blocks < whole; ++s.blocks) {
    const auto pages = std::span(s.pages).subspan(s.blocks * pages_per_block_, pages_per_block_);
    s.shared.push_back(pool_.share(r.blocks[s.blocks], pages));
  }
}

}  // namespace pagemill
