// Continuous batching: which tokens of which request each step computes, and on which pages of the cache.
// A function of trace and options alone, never of time, so that every machine runs the same steps.
//
// Requests are admitted in trace order, each with pages for its whole prompt and output, so a running one
// never waits for pages and nothing is preempted. A step of at most `budget` tokens takes one token of every
// decoding sequence, then chunks of prompts, then admits. Whole blocks of kTraceBlock prompt tokens with an
// equal id share their pages, from the step on that fills them (page sizes that divide kTraceBlock; others
// share nothing); those that no running sequence uses stay until their pages are needed, and go least
// recently used first.
#ifndef PAGEMILL_TOOLS_SCHEDULE_H_
#define PAGEMILL_TOOLS_SCHEDULE_H_

#include <pagemill/pagemill.hpp>

#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

#include "trace.h"

namespace pagemill {

// The pages of a cache: free, private to a sequence, or those of a block that several may read.
class PagePool {
 public:
  PagePool(int32_t pages, int pages_per_block);

  // Blocks of the longest prefix of ids that is here.
  int64_t count_hits(std::span<const int64_t> ids) const;
  // Takes the blocks of `hits` (here already) and n further pages, and appends the pages in this order.
  // False, with nothing changed, if there are not enough pages.
  bool take(std::span<const int64_t> hits, int64_t n, std::vector<int32_t>& pages);
  // Makes private pages a block that the caller goes on using. False if there is one of this id.
  bool share(int64_t id, std::span<const int32_t> pages);
  void release_block(int64_t id);
  void release_pages(std::span<const int32_t> pages);

  int64_t touched() const { return touched_; }  // all pages ever taken are below
  int64_t used() const { return total_ - std::ssize(free_) - idle_pages(); }  // by running sequences

 private:
  struct Block {
    std::vector<int32_t> pages;  // [pages_per_block]
    int users;
    std::list<int64_t>::iterator idle;  // if users = 0
  };
  int64_t idle_pages() const { return std::ssize(idle_) * pages_per_block_; }

  int64_t total_;
  int64_t touched_ = 0;
  int64_t pages_per_block_;
  std::vector<int32_t> free_;  // the last one is taken first
  std::unordered_map<int64_t, Block> blocks_;
  std::list<int64_t> idle_;  // ids of blocks without users, least recently used first
};

enum class StepKind { decode, prefill, mixed };

struct Step {
  StepKind kind;
  std::vector<int32_t> query_start;  // [B + 1]
  std::vector<int32_t> kv_len;       // [B]
  std::vector<int32_t> row;          // [B] row of the page table
  std::vector<int32_t> request;      // [B] index into Trace::requests
};

struct ScheduleOptions {
  int page_size = 16;     // tokens
  int32_t pages = 0;      // of the cache
  int max_seqs = 128;     // that run at once
  int32_t budget = 2048;  // tokens of a step
};

class Schedule {
 public:
  // trace must outlive the schedule. Throws std::runtime_error for a request larger than the whole cache.
  Schedule(const Trace& trace, const ScheduleOptions& options);

  // Proceeds to the next step; false if all requests are done.
  bool next();

  const Step& step() const { return step_; }
  Batch batch() const;  // of step(), by pointers that the next call of next() invalidates
  const Trace& trace() const { return trace_; }

  int64_t touched_pages() const { return pool_.touched(); }  // all pages of all steps so far are below
  int64_t finished() const { return finished_; }             // requests
  int64_t hit_tokens() const { return hit_tokens_; }         // of prompts, found in the cache
  int64_t peak_pages() const { return peak_pages_; }         // used by running sequences at once

 private:
  struct Sequence {
    int32_t request, row;
    int64_t done;              // tokens in the cache
    int64_t blocks;            // whole blocks in the cache
    std::vector<bool> shared;  // [blocks] whether the pool holds them, else they are private
    std::vector<int32_t> pages;
  };
  const Request& request(const Sequence& s) const { return trace_.requests[s.request]; }
  void retire();
  bool admit();
  void run(Sequence& s, int64_t tokens);
  void share_blocks(Sequence& s);

  const Trace& trace_;
  ScheduleOptions options_;
  int64_t pages_per_block_;  // 0 if blocks are not shared
  PagePool pool_;
  int64_t table_width_ = 0;
  std::vector<int32_t> table_;  // [max_seqs, table_width]
  std::vector<int32_t> free_rows_;
  std::vector<Sequence> running_;  // in order of admission
  size_t next_request_ = 0;
  Step step_;
  int64_t finished_ = 0, hit_tokens_ = 0, peak_pages_ = 0;
};

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_SCHEDULE_H_
