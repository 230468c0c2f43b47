#include "workload.h"

#include <algorithm>
#include <vector>

#include "reference.h"

namespace pagemill {
namespace {

// The keys that one sequence's queries see: [begin, end) together, pairs one by one.
struct Visible {
  int64_t begin = 0, end = 0;
  double pairs = 0;  // visible (query, key)
};

Visible visible_keys(const pm_config& config, const pm_batch& batch, int b) {
  const int64_t queries = batch.query_start[b + 1] - batch.query_start[b];
  const int64_t keys = config.layout == PM_NO_CACHE ? queries : batch.kv_len[b];
  const int64_t first = batch.first_position ? batch.first_position[b] : keys - queries;
  const bool causal = batch.causal ? batch.causal[b] : config.causal;
  Visible seen;
  for (int64_t position = first; position < first + queries; ++position) {
    int64_t begin = 0, end = keys;
    if (causal) end = std::min(end, position + 1);
    if (config.window_right >= 0) end = std::min(end, position + config.window_right + 1);
    if (config.window_left >= 0) begin = std::max(begin, position - config.window_left);
    if (begin >= end) continue;
    // Both bounds move by at most one a query, so the union has no hole.
    if (seen.pairs == 0) seen.begin = begin;
    seen.end = end;
    seen.pairs += double(end - begin);
  }
  return seen;
}

int v_head_dim(const pm_config& config) {
  return config.v_head_dim ? config.v_head_dim : config.head_dim;
}

// Of one slot, all KV heads.
double slot_bytes(const pm_config& config) {
  const pm_dtype dtype = config.layout == PM_NO_CACHE ? config.dtype : config.cache_dtype;
  return double(config.num_kv_heads) * (config.head_dim + v_head_dim(config)) * element_size(dtype);
}

Work work_of(const pm_config& config, const Visible& seen) {
  return {double(seen.end - seen.begin) * slot_bytes(config),
          2.0 * (config.head_dim + v_head_dim(config)) * config.num_heads * seen.pairs};
}

// Slots [begin, end) of the cache, counted through its pages.
struct Slots {
  int64_t begin, end;
};

void append_slots(const pm_config& config, const pm_batch& batch, int b, const Visible& seen,
                  std::vector<Slots>& slots) {
  const int64_t stride = batch.page_table_stride ? batch.page_table_stride : batch.pages_per_seq;
  const int32_t* row = batch.page_table + stride * (batch.row_index ? batch.row_index[b] : b);
  const int64_t size = config.page_size;
  for (int64_t key = seen.begin; key < seen.end;) {
    const int64_t next = std::min(seen.end, (key / size + 1) * size);
    const int64_t begin = row[key / size] * size + key % size;
    slots.push_back({begin, begin + next - key});
    key = next;
  }
}

int64_t distinct(std::vector<Slots>& slots) {
  std::ranges::sort(slots, {}, &Slots::begin);
  int64_t count = 0, end = 0;
  for (const Slots& s : slots) {
    count += std::max<int64_t>(0, s.end - std::max(s.begin, end));
    end = std::max(end, s.end);
  }
  return count;
}

}  // namespace

size_t element_size(pm_dtype dtype) {
  return reference::size_of(dtype);
}

const char* dtype_name(pm_dtype dtype) {
  constexpr const char* kNames[] = {"f32", "bf16", "f16", "f8e4m3", "f8e5m2"};
  return kNames[dtype];
}

Work sequence_work(const pm_config& config, const pm_batch& batch, int b) {
  return work_of(config, visible_keys(config, batch, b));
}

Work step_work(const pm_config& config, const pm_batch& batch) {
  Work total;
  std::vector<Slots> slots;
  for (int b = 0; b < batch.num_seqs; ++b) {
    const Visible seen = visible_keys(config, batch, b);
    const Work work = work_of(config, seen);
    total.flops += work.flops;
    total.bytes += work.bytes;
    if (config.layout != PM_NO_CACHE) append_slots(config, batch, b, seen, slots);
  }
  if (config.layout != PM_NO_CACHE) total.bytes = double(distinct(slots)) * slot_bytes(config);
  return total;
}

double roofline_seconds(const pm_config& config, const pm_batch& batch, const PeakRates& peak) {
  double seconds = 0;
  for (int b = 0; b < batch.num_seqs; ++b) {
    const Work work = sequence_work(config, batch, b);
    seconds += std::max(work.bytes / peak.read, work.flops / peak.flops);
  }
  return seconds;
}

}  // namespace pagemill
