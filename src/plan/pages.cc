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
  return {keys.begin / page_size, (keys.end - 1) / page_size + 1};
}

class PageReader {
 public:
  PageReader(const pm_batch& batch, PageWriters& writers, PlanData& plan)
      : batch_(batch), writers_(writers), plan_(plan), page_size_(plan.config.page_size) {}

  // Marks the pages that the sequence writes.
  pm_status claim(int32_t seq) {
    Range pages;
    PM_TRY(checked_pages(seq, written_keys(plan_.sequences[seq]), pages));
    for (int32_t p = pages.begin; p < pages.end; ++p) {
      int32_t page;
      PM_TRY(checked_entry(seq, p, page));
      const int32_t other = writers_.writer(page);
      if (other != PageWriters::kNobody) {
        return fail(
            PM_INVALID_ARGUMENT,
            "page_table[%d][%d] = %d: expected a page that sequence %d does not write in this step too",
            row_of(seq), p, page, other);
      }
      writers_.claim(page, seq);
    }
    return PM_OK;
  }

  // Copies the entries that the sequence reads or writes, and takes `fused` from sequences whose pages
  // another reads.
  pm_status copy(int32_t seq) {
    Sequence& s = plan_.sequences[seq];
    if (s.q_len == 0) return PM_OK;
    Range seen, written{0, 0};
    PM_TRY(checked_pages(seq, visible_keys(s, plan_.window, 0, s.q_len), seen));
    if (plan_.config.write_cache) PM_TRY(checked_pages(seq, written_keys(s), written));
    if (seen.begin >= seen.end) seen = written;
    if (written.begin >= written.end) written = seen;
    const Range all{std::min(seen.begin, written.begin), std::max(seen.end, written.end)};
    s.page_bias = static_cast<int64_t>(plan_.pages.size()) - all.begin;
    plan_.pages.resize(plan_.pages.size() + static_cast<size_t>(all.end - all.begin));
    for (int32_t p = seen.begin; p < seen.end; ++p) {
      int32_t page;
      PM_TRY(checked_entry(seq, p, page));
      plan_.pages[s.page_bias + p] = page;
      if (!plan_.config.write_cache) continue;
      const int32_t writer = writers_.writer(page);
      const bool own = writer == seq && p >= written.begin && p < written.end;
      if (writer != PageWriters::kNobody && !own) plan_.sequences[writer].fused = false;
    }
    for (int32_t p = written.begin; p < written.end; ++p) plan_.pages[s.page_bias + p] = row(seq)[p];
    return PM_OK;
  }

 private:
  int32_t row_of(int32_t seq) const { return batch_.row_index ? batch_.row_index[seq] : seq; }
  const int32_t* row(int32_t seq) const { return batch_.page_table + row_of(seq) * batch_.page_table_stride; }

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

  pm_status checked_entry(int32_t seq, int32_t p, int32_t& page) const {
    page = row(seq)[p];
    if (page >= 0 && page < plan_.config.num_pages) return PM_OK;
    return fail(PM_INVALID_ARGUMENT, "page_table[%d][%d] = %d: expected a page in [0, %d)", row_of(seq), p,
                page, static_cast<int>(plan_.config.num_pages));
  }

  const pm_batch& batch_;
  PageWriters& writers_;
  PlanData& plan_;
  const int32_t page_size_;
};

}  // namespace

void PageWriters::begin_step(int64_t num_pages) {
  if (marks_.size() < static_cast<size_t>(num_pages)) marks_.resize(static_cast<size_t>(num_pages));
  if (++step_ == 0) {
    std::fill(marks_.begin(), marks_.end(), Mark{});
    step_ = 1;
  }
}

pm_status build_pages(const pm_batch& batch, PageWriters& writers, PlanData& plan) {
  const pm_config& c = plan.config;
  plan.pages.clear();
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
  if (c.layout == PM_NO_CACHE) return PM_OK;
  PageReader reader(batch, writers, plan);
  if (c.write_cache) {
    writers.begin_step(c.num_pages);
    for (int32_t b = 0; b < batch.num_seqs; ++b) PM_TRY(reader.claim(b));
  }
  for (int32_t b = 0; b < batch.num_seqs; ++b) PM_TRY(reader.copy(b));
  return PM_OK;
}

}  // namespace pagemill
