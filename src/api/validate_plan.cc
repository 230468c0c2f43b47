#include <cinttypes>
#include <limits>

#include "api/validate.h"
#include "api/versioned.h"

namespace pagemill {
namespace {

bool is_wide(pm_dtype dtype) {
  return dtype == PM_F32 || dtype == PM_BF16 || dtype == PM_F16;
}

pm_status expect_flag(int32_t value, const char* name) {
  if (value == 0 || value == 1) return PM_OK;
  return fail(PM_INVALID_ARGUMENT, "%s = %d: expected 0 or 1", name, value);
}

pm_status expect_window(int32_t value, const char* name) {
  if (value >= -1) return PM_OK;
  return fail(PM_INVALID_ARGUMENT, "%s = %d: expected at least 0, or -1 for no bound", name, value);
}

pm_status validate_heads(const pm_config& c) {
  if (c.num_kv_heads < 1)
    return fail(PM_INVALID_ARGUMENT, "num_kv_heads = %d: expected at least 1", c.num_kv_heads);
  if (c.num_heads < 1 || c.num_heads % c.num_kv_heads != 0) {
    return fail(PM_INVALID_ARGUMENT, "num_heads = %d: expected a positive multiple of num_kv_heads = %d",
                c.num_heads, c.num_kv_heads);
  }
  if (c.num_heads / c.num_kv_heads > kMaxGroup) {
    return fail(PM_UNSUPPORTED,
                "num_heads = %d: expected at most %d query heads per KV head (num_kv_heads = %d)",
                c.num_heads, kMaxGroup, c.num_kv_heads);
  }
  if (c.head_dim < 1) return fail(PM_INVALID_ARGUMENT, "head_dim = %d: expected at least 16", c.head_dim);
  if (c.head_dim < 16 || c.head_dim > kMaxHeadDim || c.head_dim % 8 != 0) {
    return fail(PM_UNSUPPORTED, "head_dim = %d: expected a multiple of 8 from 16 to %d", c.head_dim,
                kMaxHeadDim);
  }
  if (c.v_head_dim < 0)
    return fail(PM_INVALID_ARGUMENT, "v_head_dim = %d: expected at least 0", c.v_head_dim);
  if (c.v_head_dim != 0 && c.v_head_dim != c.head_dim) {
    return fail(PM_UNSUPPORTED, "v_head_dim = %d: expected head_dim = %d", c.v_head_dim, c.head_dim);
  }
  return PM_OK;
}

pm_status validate_pages(const pm_config& c) {
  if (c.layout != PM_TILES && c.layout != PM_ROWS && c.layout != PM_NO_CACHE) {
    return fail(PM_INVALID_ARGUMENT, "layout = %d: expected PM_TILES, PM_ROWS or PM_NO_CACHE",
                static_cast<int>(c.layout));
  }
  if (c.layout == PM_NO_CACHE) return PM_OK;
  if (!is_wide(c.cache_dtype) && !is_f8(c.cache_dtype)) {
    return fail(PM_INVALID_ARGUMENT,
                "cache_dtype = %d: expected PM_F32, PM_BF16, PM_F16, PM_F8E4M3 or PM_F8E5M2",
                static_cast<int>(c.cache_dtype));
  }
  if (c.page_size < 1) return fail(PM_INVALID_ARGUMENT, "page_size = %d: expected at least 1", c.page_size);
  if (c.page_size > 1024) return fail(PM_UNSUPPORTED, "page_size = %d: expected at most 1024", c.page_size);
  if (c.layout == PM_TILES && c.page_size % kGroupKeys != 0) {
    return fail(PM_UNSUPPORTED, "page_size = %d: expected a multiple of 16 (layout PM_TILES)", c.page_size);
  }
  if (c.num_pages < 0 || c.num_pages > std::numeric_limits<int32_t>::max()) {
    return fail(PM_INVALID_ARGUMENT, "num_pages = %" PRId64 ": expected 0 to 2147483647", c.num_pages);
  }
  return PM_OK;
}

pm_status validate_lengths(const pm_config& config, const pm_batch& b, int32_t seq) {
  const int32_t start = b.query_start[seq], next = b.query_start[seq + 1];
  if (next < start) {
    return fail(PM_INVALID_ARGUMENT, "query_start[%d] = %d: expected at least query_start[%d] = %d", seq + 1,
                next, seq, start);
  }
  const bool causal = b.causal ? b.causal[seq] != 0 : config.causal != 0;
  if (b.causal && b.causal[seq] > 1) {
    return fail(PM_INVALID_ARGUMENT, "causal[%d] = %d: expected 0 or 1", seq, b.causal[seq]);
  }
  if (b.first_position && b.first_position[seq] < 0) {
    return fail(PM_INVALID_ARGUMENT, "first_position[%d] = %d: expected at least 0", seq,
                b.first_position[seq]);
  }
  if (!b.kv_len) return PM_OK;
  const int32_t q_len = next - start, kv_len = b.kv_len[seq];
  if (kv_len < 0) return fail(PM_INVALID_ARGUMENT, "kv_len[%d] = %d: expected at least 0", seq, kv_len);
  if (config.layout == PM_NO_CACHE && kv_len != q_len) {
    return fail(PM_INVALID_ARGUMENT, "kv_len[%d] = %d: expected q_len[%d] = %d (layout PM_NO_CACHE)", seq,
                kv_len, seq, q_len);
  }
  if (kv_len < q_len && (causal || config.write_cache)) {
    return fail(PM_INVALID_ARGUMENT, "kv_len[%d] = %d: expected at least q_len[%d] = %d (%s)", seq, kv_len,
                seq, q_len, config.write_cache ? "the plan writes the cache" : "the sequence is causal");
  }
  return PM_OK;
}

pm_status validate_table(const pm_batch& b) {
  if (b.pages_per_seq < 0) {
    return fail(PM_INVALID_ARGUMENT, "pages_per_seq = %d: expected at least 0", b.pages_per_seq);
  }
  if (b.page_table_stride < b.pages_per_seq) {
    return fail(PM_INVALID_ARGUMENT,
                "page_table_stride = %" PRId64 ": expected at least pages_per_seq = %d, or 0",
                b.page_table_stride, b.pages_per_seq);
  }
  if (b.page_table_rows < 0 || (!b.row_index && b.page_table_rows < b.num_seqs)) {
    return fail(PM_INVALID_ARGUMENT, "page_table_rows = %d: expected at least num_seqs = %d, or 0",
                b.page_table_rows, b.num_seqs);
  }
  for (int32_t seq = 0; b.row_index && seq < b.num_seqs; ++seq) {
    if (b.row_index[seq] < 0 || b.row_index[seq] >= b.page_table_rows) {
      return fail(PM_INVALID_ARGUMENT, "row_index[%d] = %d: expected a row in [0, %d)", seq, b.row_index[seq],
                  b.page_table_rows);
    }
  }
  return PM_OK;
}

}  // namespace

pm_status expect_dtype(pm_dtype dtype, const char* name) {
  if (is_wide(dtype)) return PM_OK;
  return fail(PM_INVALID_ARGUMENT, "%s = %d: expected PM_F32, PM_BF16 or PM_F16", name,
              static_cast<int>(dtype));
}

pm_status validate_config(const pm_config* in, pm_config& out) {
  out = PM_CONFIG_INIT;
  PM_TRY(read_versioned(in, "config", out));
  PM_TRY(validate_heads(out));
  PM_TRY(expect_dtype(out.dtype, "dtype"));
  if (out.out_dtype != out.dtype && out.out_dtype != PM_F32) {
    return fail(PM_INVALID_ARGUMENT, "out_dtype = %d: expected dtype = %d or PM_F32",
                static_cast<int>(out.out_dtype), static_cast<int>(out.dtype));
  }
  PM_TRY(validate_pages(out));
  PM_TRY(expect_flag(out.causal, "causal"));
  PM_TRY(expect_window(out.window_left, "window_left"));
  PM_TRY(expect_window(out.window_right, "window_right"));
  PM_TRY(expect_flag(out.write_cache, "write_cache"));
  PM_TRY(expect_flag(out.batch_invariant, "batch_invariant"));
  if (out.threads < 0 || out.threads > 4096) {
    return fail(PM_INVALID_ARGUMENT, "threads = %d: expected 0 to 4096", out.threads);
  }
  if (out.threads == 0) out.threads = pm_default_threads();
  if (out.layout == PM_NO_CACHE) {
    out.write_cache = 0;
    out.cache_dtype = out.dtype;
  }
  return PM_OK;
}

pm_status validate_batch(const pm_config& config, const pm_batch* in, pm_batch& out) {
  out = PM_BATCH_INIT;
  PM_TRY(read_versioned(in, "batch", out));
  if (out.num_seqs < 0) return fail(PM_INVALID_ARGUMENT, "num_seqs = %d: expected at least 0", out.num_seqs);
  if (out.num_tokens < 0 || out.num_tokens > std::numeric_limits<int32_t>::max()) {
    return fail(PM_INVALID_ARGUMENT, "num_tokens = %" PRId64 ": expected 0 to 2147483647", out.num_tokens);
  }
  if (out.num_seqs == 0) return PM_OK;
  PM_TRY(expect_pointer(out.query_start, "query_start", 4));
  if (out.kv_len || config.layout != PM_NO_CACHE) PM_TRY(expect_pointer(out.kv_len, "kv_len", 4));
  if (out.row_index) PM_TRY(expect_pointer(out.row_index, "row_index", 4));
  if (out.first_position) PM_TRY(expect_pointer(out.first_position, "first_position", 4));
  if (out.query_start[0] != 0) {
    return fail(PM_INVALID_ARGUMENT, "query_start[0] = %d: expected 0", out.query_start[0]);
  }
  for (int32_t seq = 0; seq < out.num_seqs; ++seq) PM_TRY(validate_lengths(config, out, seq));
  const int32_t last = out.query_start[out.num_seqs];
  if (last > out.num_tokens) {
    return fail(PM_INVALID_ARGUMENT, "query_start[%d] = %d: expected at most num_tokens = %" PRId64,
                out.num_seqs, last, out.num_tokens);
  }
  if (config.layout == PM_NO_CACHE) return PM_OK;
  if (out.page_table_stride == 0) out.page_table_stride = out.pages_per_seq;
  if (out.page_table_rows == 0) out.page_table_rows = out.num_seqs;
  return validate_table(out);
}

}  // namespace pagemill
