#include <algorithm>

#include "api/status.h"
#include "plan/plan.h"

namespace pagemill {
namespace {

Range written_keys(const Sequence& s) {
  return {s.kv_len - s.q_len, s.kv_len};
}

Range pages_of(Range keys, int32_t page_size) {
  if (keys.begin >= keys.end) return {0, 0};
  const auto size = static_cast<uint32_t>(page_size);
  return {static_cast<int32_t>(static_cast<uint32_t>(keys.begin) / size),
          static_cast<int32_t>(static_cast<uint32_t>(keys.end - 1) / size) + 1};
}

// Copies n entries; false if one is not in [0, num_pages). No branch in the loop, so that it is vectorised.
bool copy_entries(const int32_t* from, int32_t n, int64_t num_pages, int32_t* to) {
  const auto last = static_cast<uint32_t>(num_pages - 1);
  uint32_t outside = 0;  // its sign bit
  for (int32_t i = 0; i < n; ++i) {
    const auto page = static_cast<uint32_t>(from[i]);
    to[i] = from[i];
    outside |= page | (last - page);
  }
  return outside >> 31 == 0;
}

class PageReader {
 public:
  PageReader(const pm_batch& batch, PlanScratch& scratch, PlanData& plan)
      : batch_(batch),
        writers_(scratch.writers),
        pages_(scratch.pages),
        plan_(plan),
        page_size_(plan.config.page_size) {}

  // Finds the entries that the sequence reads and writes, marks the pages that it writes, and gives it a
  // place for its entries, from `end` on.
  pm_status claim(int32_t seq, int64_t& end) {
    Sequence& s = plan_.sequences[seq];
    SequencePages& pages = pages_[seq];
    pages = {};
    if (s.q_len == 0) return PM_OK;
    PM_TRY(checked_pages(seq, visible_keys(s, plan_.window, 0, s.q_len), pages.seen));
    if (plan_.config.write_cache) {
      PM_TRY(checked_pages(seq, written_keys(s), pages.written));
      PM_TRY(claim_pages(seq, pages.written));
    }
    const Range all = pages.all();
    s.page_bias = end - all.begin;
    end += all.end - all.begin;
    return PM_OK;
  }

  // Copies the entries, and takes `fused` from sequences whose pages another reads.
  pm_status copy(int32_t seq) {
    const auto [seen, written] = pages_[seq];
    const int32_t* entries = row(seq);
    int32_t* pages = plan_.pages.data() + plan_.sequences[seq].page_bias;
    if (!copy_entries(entries + seen.begin, seen.end - seen.begin, plan_.config.num_pages,
                      pages + seen.begin)) {
      for (int32_t p = seen.begin;; ++p) {
        if (entries[p] < 0 || entries[p] >= plan_.config.num_pages) return outside(seq, p);
      }
    }
    std::copy(entries + written.begin, entries + written.end, pages + written.begin);
    unfuse_writers(pages, {seen.begin, std::min(seen.end, written.begin)});
    return PM_OK;
  }

 private:
  int32_t row_of(int32_t seq) const { return batch_.row_index ? batch_.row_index[seq] : seq; }
  // NULL without a page table, which no sequence needs that reads and writes no keys.
  const int32_t* row(int32_t seq) const {
    return batch_.page_table ? batch_.page_table + row_of(seq) * batch_.page_table_stride : nullptr;
  }

  pm_status claim_pages(int32_t seq, Range pages) {
    for (int32_t p = pages.begin; p < pages.end; ++p) {
      const int32_t page = row(seq)[p];
      if (page < 0 || page >= plan_.config.num_pages) return outside(seq, p);
      if (writers_.claimed(page)) {
        return fail(
            PM_INVALID_ARGUMENT,
            "page_table[%d][%d] = %d: expected a page that sequence %d does not write in this step too",
            row_of(seq), p, page, writers_.writer(page));
      }
      writers_.claim(page, seq);
    }
    return PM_OK;
  }

  // `seen` lies before the sequence's own writes: who writes there gets read by another, or by itself through
  // an alias.
  void unfuse_writers(const int32_t* pages, Range seen) {
    if (seen.begin >= seen.end || !writers_.any_claimed(pages + seen.begin, seen.end - seen.begin)) return;
    for (int32_t p = seen.begin; p < seen.end; ++p) {
      if (writers_.claimed(pages[p])) plan_.sequences[writers_.writer(pages[p])].fused = false;
    }
  }

  pm_status checked_pages(int32_t seq, Range keys, Range& pages) const {
    pages = pages_of(keys, page_size_);
    if (pages.begin >= pages.end) return PM_OK;
    if (!batch_.page_table) return fail(PM_INVALID_ARGUMENT, "page_table = NULL: expected an array");
    if (reinterpret_cast<uintptr_t>(batch_.page_table) % 4 != 0) {
      return fail(PM_INVALID_ARGUMENT, "page_table = %p: expected alignment to 4 bytes",
                  static_cast<const void*>(batch_.page_table));
    }
    if (pages.end > batch_.pages_per_seq) {
      return fail(PM_INVALID_ARGUMENT, "pages_per_seq = %d: expected at least %d for kv_len[%d] = %d",
                  batch_.pages_per_seq, pages.end, seq, batch_.kv_len[seq]);
    }
    return PM_OK;
  }

  pm_status outside(int32_t seq, int32_t p) const {
    return fail(PM_INVALID_ARGUMENT, "page_table[%d][%d] = %d: expected a page in [0, %d)", row_of(seq), p,
                row(seq)[p], static_cast<int32_t>(plan_.config.num_pages));
  }

  const pm_batch& batch_;
  PageWriters& writers_;
  std::vector<SequencePages>& pages_;
  PlanData& plan_;
  const int32_t page_size_;
};

}  // namespace

// Most of the time of planning a large step of decodes goes by here.
bool PageWriters::any_claimed(const int32_t* pages, int64_t n) const {
  constexpr int64_t kTogether = 8;  // lookups that need no pointer of their own
  const uint8_t* claimed = claimed_.data();
  uint8_t any = 0;
  int64_t i = 0;
  for (; i + kTogether <= n; i += kTogether) {
    PM_UNROLL for (int64_t j = 0; j < kTogether; ++j) any |= claimed[static_cast<uint32_t>(pages[i + j])];
  }
  for (; i < n; ++i) any |= claimed[static_cast<uint32_t>(pages[i])];
  return any != 0;
}

void PageWriters::claim(int32_t page, int32_t seq) {
  claims_.push_back(page);
  claimed_[static_cast<size_t>(page)] = 1;
  writer_[static_cast<size_t>(page)] = seq;
}

void PageWriters::begin_step(int64_t num_pages) {
  for (const int32_t page : claims_) claimed_[static_cast<size_t>(page)] = 0;
  claims_.clear();
  if (writer_.size() < static_cast<size_t>(num_pages)) {
    claimed_.resize(static_cast<size_t>(num_pages));
    writer_.resize(static_cast<size_t>(num_pages));
  }
}

pm_status build_pages(const pm_batch& batch, PlanScratch& scratch, PlanData& plan) {
  const pm_config& c = plan.config;
  plan.sequences.resize(static_cast<size_t>(batch.num_seqs));
  for (int32_t b = 0; b < batch.num_seqs; ++b) {
    Sequence& s = plan.sequences[b];
    s.page_bias = 0;
    s.query_begin = batch.query_start[b];
    s.q_len = batch.query_start[b + 1] - s.query_begin;
    s.kv_len = c.layout == PM_NO_CACHE ? s.q_len : batch.kv_len[b];
    s.first_position = batch.first_position ? batch.first_position[b] : s.kv_len - s.q_len;
    s.causal = batch.causal ? batch.causal[b] != 0 : c.causal != 0;
    s.fused = c.write_cache && s.q_len > 0;
  }
  if (c.layout == PM_NO_CACHE) {
    plan.pages.clear();
    return PM_OK;
  }
  PageReader reader(batch, scratch, plan);
  scratch.pages.resize(plan.sequences.size());
  if (c.write_cache) scratch.writers.begin_step(c.num_pages);
  int64_t num_entries = 0;
  for (int32_t b = 0; b < batch.num_seqs; ++b) PM_TRY(reader.claim(b, num_entries));
  plan.pages.resize(static_cast<size_t>(num_entries));
  for (int32_t b = 0; b < batch.num_seqs; ++b) PM_TRY(reader.copy(b));
  return PM_OK;
}

}  // namespace pagemill
