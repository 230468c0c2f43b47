// What a step needs besides its tensors: sequences, pages, work items, splits, memory. A pure function of
// configuration, batch and number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "attention/step.h"
#include "dispatch/select.h"
#include "plan/cost.h"
#include "plan/simulate.h"

namespace pagemill {

struct WorkspaceLayout {
  size_t arrivals, scratch, scratch_stride,
      partials;  // offsets and stride in bytes; the item counter lies at 0
  size_t bytes;
};

// What the cost model says for this plan's shape and number of threads.
struct PlanCosts {
  UnitCost unit;
  double merge_float;  // ns per float of a partial result
  double store_token;  // ns per new token and KV head
};

struct PlanData : Work {
  pm_config config = PM_CONFIG_INIT;
  const Isa* isa = nullptr;
  Selection selection{};
  Window window{};
  int64_t num_queries = 0;  // query_start[B]
  int32_t parts = 1;        // tasks of a run
  int32_t scratch_rows = 0;
  int64_t stored_tokens = 0, fused_tokens = 0;
  std::vector<Sequence> sequences;
  std::vector<int32_t> pages;  // the visible part of the page table, sequence after sequence
  PlanCosts costs_of{};
  double unsplit_ns = 0;  // of the step on one thread, without splits and merges
  WorkspaceLayout workspace{};
};

// Which sequence writes each page in the step being planned. Kept between builds: a step clears what the one
// before it claimed, and no more.
class PageWriters {
 public:
  void begin_step(int64_t num_pages);
  bool claimed(int32_t page) const { return claimed_[static_cast<size_t>(page)] != 0; }
  bool any_claimed(const int32_t* pages, int64_t n) const;
  int32_t writer(int32_t page) const { return writer_[static_cast<size_t>(page)]; }  // of a claimed one
  void claim(int32_t page, int32_t seq);

 private:
  // [pages] 1 or 0. Every visible entry of the page table is looked up here: bytes take a quarter of the
  // instructions of bits, and those of 600k pages still fit the second-level cache.
  std::vector<uint8_t> claimed_;
  std::vector<int32_t> writer_;  // [pages]
  std::vector<int32_t> claims_;  // pages
};

// Entries of a sequence's row of the page table that a step reads and writes; {0, 0} where there are none.
struct SequencePages {
  Range seen, written;
  Range all() const {
    if (written.end == 0) return seen;
    if (seen.end == 0) return written;
    return {std::min(seen.begin, written.begin), std::max(seen.end, written.end)};
  }
};

// Working memory of the builder, kept between builds.
struct PlanScratch {
  PageWriters writers;
  std::vector<SequencePages> pages;
  Work uncut, tiles, cut, trial, best;                          // items that stand for all KV heads
  std::vector<int32_t> first_of_seq, last_of_seq, next_of_seq;  // the items of each sequence, chained
  Simulation simulation;
};

// config and batch as validated.
pm_status build_plan(const pm_config& config, const pm_batch& batch, PlanScratch& scratch, PlanData& plan);

// Sequences and their pages; Sequence::fused says that no sequence reads what this one writes.
pm_status build_pages(const pm_batch& batch, PlanScratch& scratch, PlanData& plan);

// Items, splits, merges; clears Sequence::fused where several items would read what one stores.
void build_items(PlanScratch& scratch, PlanData& plan);

// When the last thread of a run ends, by the cost model, in ns.
double simulate_run(const PlanData& plan);

}  // namespace pagemill

struct pm_plan {
  pagemill::PlanData current,
      next;  // a build fills `next` and swaps: storage is reused, a failed build changes nothing
  pagemill::PlanScratch scratch;
};
