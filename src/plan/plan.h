// What a step needs besides its tensors: sequences, pages, work items, splits, memory. A pure function of
// configuration, batch and number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/step.h"
#include "dispatch/select.h"

namespace pagemill {

struct WorkspaceLayout {
  size_t arrivals, scratch, scratch_stride,
      partials;  // offsets and stride in bytes; the item counter lies at 0
  size_t bytes;
};

struct PlanData {
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
  std::vector<Item> items;     // longest first
  std::vector<Merge> merges;
  WorkspaceLayout workspace{};
};

// Which sequence writes each page in the step being planned. Kept between builds: marks of older steps are
// stale by their number, so that nothing is cleared.
class PageWriters {
 public:
  static constexpr int32_t kNobody = -1;
  void begin_step(int64_t num_pages);
  // The sequence that has claimed the page in this step, or kNobody.
  int32_t writer(int32_t page) const {
    const Mark& mark = marks_[static_cast<size_t>(page)];
    return mark.step == step_ ? mark.seq : kNobody;
  }
  void claim(int32_t page, int32_t seq) { marks_[static_cast<size_t>(page)] = {step_, seq}; }

 private:
  struct Mark {
    uint32_t step = 0;
    int32_t seq = 0;
  };
  std::vector<Mark> marks_;
  uint32_t step_ = 0;
};

// Working memory of the builder, kept between builds.
struct PlanScratch {
  PageWriters writers;
  std::vector<float> costs;
  std::vector<Item> unsorted;
};

// config and batch as validated.
pm_status build_plan(const pm_config& config, const pm_batch& batch, PlanScratch& scratch, PlanData& plan);

// Sequences and their pages; Sequence::fused says that no sequence reads what this one writes.
pm_status build_pages(const pm_batch& batch, PageWriters& writers, PlanData& plan);

// Items, splits, merges; clears Sequence::fused where several items would read what one stores.
void build_items(PlanScratch& scratch, PlanData& plan);

}  // namespace pagemill

struct pm_plan {
  pagemill::PlanData current,
      next;  // a build fills `next` and swaps: storage is reused, a failed build changes nothing
  pagemill::PlanScratch scratch;
};
