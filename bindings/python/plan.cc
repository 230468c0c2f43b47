#include "plan.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "../torch/openmp.h"
#include "plan_docs.h"
#include "workspaces.h"

namespace pagemill::python {
namespace {

// What Plan's constructor takes by name.
struct Options {
  int num_heads, num_kv_heads, head_dim;
  std::string dtype, out_dtype;
  bool causal;
  int window_left, window_right;
  bool write_cache, batch_invariant;
  int threads;
  std::string isa;  // "" = the library's choice
  bool openmp;      // run on PyTorch's threads
};

Config config_of(const Options& options, const PagedCache* cache) {
  Config config;
  config.num_heads = options.num_heads;
  config.num_kv_heads = options.num_kv_heads;
  config.head_dim = options.head_dim;
  config.dtype = dtype_named(options.dtype, "dtype");
  config.out_dtype = dtype_named(options.out_dtype, "out_dtype");
  config.layout = PM_NO_CACHE;
  if (cache) {
    config.num_kv_heads = cache->view().num_kv_heads;
    config.head_dim = cache->view().head_dim;
    config.layout = cache->view().layout;
    config.cache_dtype = cache->view().dtype;
    config.page_size = cache->view().page_size;
    config.num_pages = cache->view().num_pages;
  }
  config.causal = options.causal;
  config.window_left = options.window_left;
  config.window_right = options.window_right;
  config.write_cache = options.write_cache;
  config.batch_invariant = options.batch_invariant;
  config.threads = options.threads;
  config.isa = options.isa.empty() ? nullptr : options.isa.c_str();
  return config;
}

// The scalars and optional arrays of an attention call.
struct Scores {
  nb::object scale;
  float soft_cap, q_scale, k_scale, v_scale;
  nb::object sinks, alibi_slopes;
};

class StepPlan {
 public:
  StepPlan(nb::object query_start, nb::object kv_len, nb::object page_table, const PagedCache* cache,
           nb::object first_position, nb::object row_index, nb::object causal_of, const Options& options)
      : config_(config_of(options, cache)) {
    const auto starts = import_int32(query_start, "query_start", {{"B + 1", -1}});
    const int64_t num_seqs = starts->extent(0) - 1;
    if (num_seqs < 0) throw InvalidArgument("query_start.shape = [0]: expected [B + 1]");
    const auto lengths = import_int32(kv_len, "kv_len", {{"B", num_seqs}});
    const auto rows = import_int32(row_index, "row_index", {{"B", num_seqs}});
    const auto table = import_int32(page_table, "page_table", {{"rows", -1}, {"pages_per_seq", -1}});
    const auto positions = import_int32(first_position, "first_position", {{"B", num_seqs}});
    std::optional<Array> causal;
    if (!causal_of.is_none()) {
      causal = import_array(causal_of, "causal", Access::kRead);
      expect_shape(*causal, "causal", {{"B", num_seqs}});
    }

    Batch batch;
    batch.num_seqs = static_cast<int32_t>(num_seqs);
    batch.query_start = int32_data(starts);
    num_queries_ = num_seqs > 0 ? batch.query_start[num_seqs] : 0;
    batch.num_tokens = std::max<int64_t>(num_queries_, 0);
    batch.kv_len = int32_data(lengths);
    if (table) {
      batch.page_table = int32_data(table);
      batch.pages_per_seq = static_cast<int32_t>(table->extent(1));
      batch.page_table_rows = static_cast<int32_t>(table->extent(0));
      batch.page_table_stride = table->extent(0) > 1 ? table->stride(0) : 0;
    }
    batch.row_index = int32_data(rows);
    batch.first_position = int32_data(positions);
    if (causal) batch.causal = reinterpret_cast<const uint8_t*>(causal->data());

    if (options.openmp) executor_ = torch::openmp_executor();
    nb::gil_scoped_release release;
    plan_.build(config_, batch);
    workspace_bytes_ = plan_.stats().workspace_bytes;
  }

  nb::any run(nb::handle q, nb::handle k_new, nb::handle v_new, const PagedCache* cache, nb::object out,
              nb::object lse, const Scores& scores) const {
    Call call(*this);
    call.expect_cache(cache, config_.write_cache && config_.layout != PM_NO_CACHE);
    call.read_new(k_new, v_new, cache);
    call.read_attention(q, std::move(out), std::move(lse), scores, cache);
    call.execute(pm_run);
    return call.result();
  }

  nb::any attend(nb::handle q, const PagedCache* cache, nb::object out, nb::object lse,
                 const Scores& scores) const {
    if (config_.layout == PM_NO_CACHE) {
      throw InvalidArgument(
          "attend: the plan is for attention without a cache: expected run with k_new and v_new");
    }
    Call call(*this);
    call.expect_cache(cache, false);
    call.read_attention(q, std::move(out), std::move(lse), scores, cache);
    call.execute(pm_attend);
    return call.result();
  }

  void store(nb::handle k_new, nb::handle v_new, const PagedCache* cache, float k_scale,
             float v_scale) const {
    Call call(*this);
    call.expect_cache(cache, true);
    if (config_.write_cache) call.read_new(k_new, v_new, cache);
    call.args.k_scale = k_scale;
    call.args.v_scale = v_scale;
    call.execute(pm_store);
  }

  nb::dict stats() const {
    const pm_plan_stats stats = plan_.stats();
    const pm_estimate estimate = plan_.estimate();
    nb::dict out;
    out["kernel"] = stats.kernel;
    out["isa"] = stats.isa;
    out["workspace_bytes"] = stats.workspace_bytes;
    out["parts"] = stats.parts;
    out["items"] = stats.items;
    out["split_items"] = stats.split_items;
    out["merges"] = stats.merges;
    out["stored_tokens"] = stats.stored_tokens;
    out["fused_tokens"] = stats.fused_tokens;
    out["estimated_ns"] = estimate.run_ns;
    return out;
  }

  int64_t num_tokens() const { return num_queries_; }

 private:
  static std::optional<Array> import_int32(nb::handle object, const char* name,
                                           std::initializer_list<Extent> shape) {
    std::optional<Array> array;
    if (object.is_none()) return array;
    array = import_array(object, name, Access::kRead);
    expect_shape(*array, name, shape);
    return array;
  }

  // The arguments of one call on their way into pm_args, and what it returns.
  class Call {
   public:
    explicit Call(const StepPlan& plan) : plan_(plan) {}

    void expect_cache(const PagedCache* cache, bool written) {
      const Config& c = plan_.config_;
      if (c.layout == PM_NO_CACHE) {
        if (cache) throw InvalidArgument("cache: expected None, the plan is for attention without a cache");
        return;
      }
      if (!cache) throw InvalidArgument("cache = None: expected the cache that the plan is for");
      const pagemill::Cache& view = cache->view();
      if (view.layout != c.layout || view.dtype != c.cache_dtype || view.page_size != c.page_size ||
          view.num_kv_heads != c.num_kv_heads || view.head_dim != c.head_dim ||
          view.num_pages < c.num_pages) {
        throw InvalidArgument(
            "cache: expected layout, dtype, K, D, P and number of pages of the plan's cache");
      }
      if (written && !cache->writable()) {
        throw InvalidArgument(
            "cache: read-only arrays: expected ones that can be written, or write_cache=False");
      }
      args.k_cache = view.k, args.v_cache = view.v;
      args.k_stride_page = view.k_stride_page, args.v_stride_page = view.v_stride_page;
      args.k_stride_token = view.k_stride_token, args.v_stride_token = view.v_stride_token;
      args.k_stride_head = view.k_stride_head, args.v_stride_head = view.v_stride_head;
    }

    void read_new(nb::handle k_new, nb::handle v_new, const PagedCache* cache) {
      const Config& c = plan_.config_;
      if (!c.write_cache && c.layout != PM_NO_CACHE) return;
      k_new_ = read_tensor(k_new, "k_new", c.num_kv_heads, "K");
      v_new_ = read_tensor(v_new, "v_new", c.num_kv_heads, "K");
      args.k_new = k_new_->data(), args.v_new = v_new_->data();
      args.k_new_stride_token = k_new_->stride(0), args.v_new_stride_token = v_new_->stride(0);
      args.k_new_stride_head = k_new_->stride(1), args.v_new_stride_head = v_new_->stride(1);
      if (!cache) return;
      for (const auto& [array, name] : {std::pair{&k_new_, "k_new"}, std::pair{&v_new_, "v_new"}}) {
        expect_apart(cache->k_array(), "cache.k", **array, name);
        expect_apart(cache->v_array(), "cache.v", **array, name);
      }
    }

    void read_attention(nb::handle q, nb::object out, nb::object lse, const Scores& scores,
                        const PagedCache* cache) {
      const Config& c = plan_.config_;
      const Array queries = read_tensor(q, "q", c.num_heads, "H");
      const int64_t tokens = queries.extent(0);
      args.q = queries.data();
      args.q_stride_token = queries.stride(0), args.q_stride_head = queries.stride(1);

      const bool new_out = out.is_none();
      out_ = new_out ? new_array({tokens, c.num_heads, c.head_dim}, c.out_dtype) : std::move(out);
      const Array result = import_array(out_, "out", Access::kWrite);
      expect_element(result, "out", c.out_dtype);
      expect_shape(result, "out", {{"T", tokens}, {"H", c.num_heads}, {"D", c.head_dim}});
      args.out = result.data();
      args.out_stride_token = result.stride(0), args.out_stride_head = result.stride(1);
      if (new_out) clear_padding(result);
      read_lse(std::move(lse), tokens);
      expect_results_apart(result, queries, cache);

      if (!scores.scale.is_none()) args.scale = read_scale(scores.scale);
      args.soft_cap = scores.soft_cap;
      args.q_scale = scores.q_scale, args.k_scale = scores.k_scale, args.v_scale = scores.v_scale;
      sinks_ = import_optional(scores.sinks, "sinks", PM_F32, {{"H", c.num_heads}});
      alibi_slopes_ = import_optional(scores.alibi_slopes, "alibi_slopes", PM_F32, {{"H", c.num_heads}});
      if (sinks_) args.sinks = reinterpret_cast<const float*>(sinks_->data());
      if (alibi_slopes_) args.alibi_slopes = reinterpret_cast<const float*>(alibi_slopes_->data());
    }

    void execute(decltype(pm_run) function) {
      nb::gil_scoped_release release;
      const BorrowedWorkspace workspace(plan_.workspace_bytes_);
      check(function(plan_.plan_.get(), &args, workspace.get().data(), workspace.get().bytes(),
                     plan_.executor_ ? &*plan_.executor_ : nullptr));
    }

    nb::any result() const {
      nb::object result = lse_.is_valid() ? nb::make_tuple(out_, lse_) : out_;
      return nb::borrow<nb::any>(result);
    }

    Args args;

   private:
    Array read_tensor(nb::handle object, const char* name, int64_t heads, const char* letter) const {
      Array array = import_array(object, name, Access::kRead);
      expect_element(array, name, plan_.config_.dtype);
      expect_shape(array, name, {{"T", -1}, {letter, heads}, {"D", plan_.config_.head_dim}});
      if (array.extent(0) < plan_.num_queries_) {
        throw InvalidArgument(std::string(name) + ".shape[0] = " + std::to_string(array.extent(0)) +
                              ": expected at least the plan's " + std::to_string(plan_.num_queries_) +
                              " tokens");
      }
      return array;
    }

    static float read_scale(nb::handle object) {
      const auto scale = nb::cast<float>(object);
      if (scale == 0) throw InvalidArgument("scale = 0: expected another number, or None for 1 / sqrt(D)");
      return scale;
    }

    // Rows past the last query stay as they are; those of a new array are zeros.
    void clear_padding(const Array& result) const {
      const int64_t row = result.stride(0) * result.element.bits / 8;
      const int64_t rows = result.extent(0) - plan_.num_queries_;
      std::memset(result.data() + plan_.num_queries_ * row, 0, static_cast<size_t>(rows * row));
    }

    void read_lse(nb::object lse, int64_t tokens) {
      const Config& c = plan_.config_;
      if (lse.is(nb::bool_(false)) || lse.is_none()) return;
      const bool new_lse = lse.is(nb::bool_(true));
      lse_ = new_lse ? new_array({tokens, c.num_heads}, PM_F32) : std::move(lse);
      lse_array_ = import_array(lse_, "lse", Access::kWrite);
      expect_element(*lse_array_, "lse", PM_F32);
      expect_shape(*lse_array_, "lse", {{"T", tokens}, {"H", c.num_heads}});
      args.lse = reinterpret_cast<float*>(lse_array_->data());
      args.lse_stride_token = lse_array_->stride(0);
      if (new_lse) clear_padding(*lse_array_);
    }

    void expect_results_apart(const Array& result, const Array& queries, const PagedCache* cache) const {
      const auto expect_one = [&](const Array& written, const char* name) {
        expect_apart(written, name, queries, "q");
        if (k_new_) expect_apart(written, name, *k_new_, "k_new");
        if (v_new_) expect_apart(written, name, *v_new_, "v_new");
        if (cache) expect_apart(written, name, cache->k_array(), "cache.k");
        if (cache) expect_apart(written, name, cache->v_array(), "cache.v");
      };
      expect_one(result, "out");
      if (lse_array_) expect_one(*lse_array_, "lse");
      if (lse_array_) expect_apart(*lse_array_, "lse", result, "out");
    }

    const StepPlan& plan_;
    nb::object out_, lse_;
    std::optional<Array> k_new_, v_new_, lse_array_, sinks_, alibi_slopes_;
  };

  Config config_;
  Plan plan_;
  std::optional<Executor> executor_;  // none: the library's pool
  int64_t num_queries_ = 0;
  size_t workspace_bytes_ = 0;
};

}  // namespace

void bind_plan(nb::module_& m) {
  using nb::arg;
  nb::class_<StepPlan>(m, "Plan", kPlanDoc)
      .def(
          "__init__",
          [](StepPlan* self, nb::object query_start, nb::object kv_len, nb::object page_table,
             const PagedCache* cache, nb::object first_position, nb::object row_index, nb::object causal_of,
             int num_heads, int num_kv_heads, int head_dim, const std::string& dtype,
             const std::string& out_dtype, bool causal, int window_left, int window_right, bool write_cache,
             bool batch_invariant, int threads, const std::string& isa, bool openmp) {
            new (self) StepPlan(query_start, kv_len, page_table, cache, first_position, row_index, causal_of,
                                {num_heads, num_kv_heads, head_dim, dtype, out_dtype, causal, window_left,
                                 window_right, write_cache, batch_invariant, threads, isa, openmp});
          },
          arg("query_start"), arg("kv_len").none(), arg("page_table").none(), arg("cache").none(),
          arg("first_position").none(), arg("row_index").none(), arg("causal_of").none(), nb::kw_only(),
          arg("num_heads"), arg("num_kv_heads"), arg("head_dim"), arg("dtype"), arg("out_dtype"),
          arg("causal"), arg("window_left"), arg("window_right"), arg("write_cache"), arg("batch_invariant"),
          arg("threads"), arg("isa"), arg("openmp"))
      .def(
          "run",
          [](const StepPlan& plan, nb::handle q, nb::handle k_new, nb::handle v_new, const PagedCache* cache,
             nb::object out, nb::object lse, nb::object scale, float soft_cap, float q_scale, float k_scale,
             float v_scale, nb::object sinks, nb::object alibi_slopes) {
            return plan.run(q, k_new, v_new, cache, std::move(out), std::move(lse),
                            {scale, soft_cap, q_scale, k_scale, v_scale, sinks, alibi_slopes});
          },
          arg("q"), arg("k_new").none(), arg("v_new").none(), arg("cache").none(), nb::kw_only(),
          arg("out") = nb::none(), arg("lse") = false, arg("scale") = nb::none(), arg("soft_cap") = 0.0f,
          arg("q_scale") = 1.0f, arg("k_scale") = 1.0f, arg("v_scale") = 1.0f, arg("sinks") = nb::none(),
          arg("alibi_slopes") = nb::none(), kRunDoc)
      .def("store", &StepPlan::store, arg("k_new"), arg("v_new"), arg("cache").none(), nb::kw_only(),
           arg("k_scale") = 1.0f, arg("v_scale") = 1.0f, kStoreDoc)
      .def(
          "attend",
          [](const StepPlan& plan, nb::handle q, const PagedCache* cache, nb::object out, nb::object lse,
             nb::object scale, float soft_cap, float q_scale, float k_scale, float v_scale, nb::object sinks,
             nb::object alibi_slopes) {
            return plan.attend(q, cache, std::move(out), std::move(lse),
                               {scale, soft_cap, q_scale, k_scale, v_scale, sinks, alibi_slopes});
          },
          arg("q"), arg("cache").none(), nb::kw_only(), arg("out") = nb::none(), arg("lse") = false,
          arg("scale") = nb::none(), arg("soft_cap") = 0.0f, arg("q_scale") = 1.0f, arg("k_scale") = 1.0f,
          arg("v_scale") = 1.0f, arg("sinks") = nb::none(), arg("alibi_slopes") = nb::none(), kAttendDoc)
      .def_prop_ro("num_tokens", &StepPlan::num_tokens, "New tokens of the step: query_start[B].")
      .def_prop_ro("stats", &StepPlan::stats, kStatsDoc);
}

}  // namespace pagemill::python
