#include "forward.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

namespace pagemill::engine {
namespace {

constexpr size_t kNodesPerLayer = 48;  // of the graph, with room to spare

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

size_t dtype_bytes(pm_dtype dtype) {
  return dtype == PM_F32 ? 4 : 2;
}

Config attention_config(const Shape& shape, const Options& options) {
  Config config;
  config.num_heads = shape.heads;
  config.num_kv_heads = shape.kv_heads;
  config.head_dim = shape.head_dim;
  // ggml computes in f32; with a bf16 cache q, k and v are rounded first, for the products of bf16.
  config.dtype = options.cache_dtype == PM_BF16 ? PM_BF16 : PM_F32;
  config.out_dtype = PM_F32;
  config.cache_dtype = options.cache_dtype;
  config.page_size = options.page_size;
  config.num_pages = options.pages;
  config.threads = options.threads;
  return config;
}

// Sum over the sequence's new tokens of the keys that each sees.
double visible_pairs(int first, int count, int window) {
  double pairs = 0;
  for (int position = first; position < first + count; ++position) {
    pairs += window > 0 ? std::min(position + 1, window) : position + 1;
  }
  return pairs;
}

}  // namespace

Forward::Forward(const Weights& weights, const Options& options)
    : weights_(weights),
      batch_weights_(weights),
      shape_(weights.shape()),
      threads_(options.threads),
      config_(attention_config(shape_, options)),
      times_(options.threads) {
  const size_t plane = size_t(options.page_size) * shape_.head_dim * dtype_bytes(options.cache_dtype);
  const size_t layer_bytes = size_t(options.pages) * shape_.kv_heads * 2 * plane;
  cache_ = HugeBuffer(layer_bytes * shape_.layers);
  for (int i = 0; i < shape_.layers; ++i) {
    const int window = shape_.local[i] ? shape_.window : 0;
    auto found = std::find(windows_.begin(), windows_.end(), window);
    if (found == windows_.end()) found = windows_.insert(found, window);
    layers_.push_back({this, i, size_t(found - windows_.begin()), cache_.data() + i * layer_bytes});
  }
  plans_.resize(windows_.size());

  backend_.reset(ggml_backend_cpu_init());
  ggml_threadpool_params params = ggml_threadpool_params_default(threads_);
  pool_.reset(ggml_threadpool_new(&params));
  ggml_backend_cpu_set_n_threads(backend_.get(), threads_);
  ggml_backend_cpu_set_threadpool(backend_.get(), pool_.get());
  allocator_.reset(ggml_gallocr_new(ggml_backend_cpu_buffer_type()));
  const size_t nodes = 64 + kNodesPerLayer * shape_.layers;
  graph_memory_.resize(nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(nodes, false));
}

Forward::~Forward() = default;

const float* Forward::run(const Step& step) {
  plan(step);
  step_ = &step;
  ggml_cgraph* graph = build(step);
  if (!ggml_gallocr_alloc_graph(allocator_.get(), graph)) throw std::bad_alloc();
  const auto fill = [](ggml_tensor* tensor, const std::vector<int32_t>& values) {
    if (tensor) std::copy(values.begin(), values.end(), static_cast<int32_t*>(tensor->data));
  };
  fill(tokens_, step.tokens);
  fill(positions_, step.positions);
  fill(rows_, step.logit_rows);
  for (ThreadTime& time : times_) time.seconds = 0;
  const ggml_status status = ggml_backend_graph_compute(backend_.get(), graph);
  if (failed_ != PM_OK) throw std::logic_error("the attention of a step was refused");
  if (status != GGML_STATUS_SUCCESS) throw std::runtime_error("ggml could not compute a step");
  double seconds = 0;
  for (const ThreadTime& time : times_) seconds += time.seconds;
  account(step, seconds / threads_);
  return logits_ ? static_cast<const float*>(logits_->data) : nullptr;
}

void Forward::plan(const Step& step) {
  Batch batch;
  batch.num_seqs = static_cast<int32_t>(step.pieces.size());
  batch.num_tokens = static_cast<int64_t>(step.tokens.size());
  batch.query_start = step.query_start.data();
  batch.kv_len = step.kv_len.data();
  batch.page_table = step.page_table.data();
  batch.pages_per_seq = step.pages_per_seq;
  for (size_t i = 0; i < plans_.size(); ++i) {
    config_.window_left = windows_[i] > 0 ? windows_[i] - 1 : -1;
    plans_[i].build(config_, batch);
    const pm_plan_stats stats = plans_[i].stats();
    workspace_.reserve(stats.workspace_bytes);
    stats_.isa = stats.isa;
  }
}

ggml_cgraph* Forward::build(const Step& step) {
  graph_context_.reset();
  graph_context_.reset(ggml_init({graph_memory_.size(), graph_memory_.data(), true}));
  ggml_context* ctx = graph_context_.get();
  ggml_cgraph* graph = ggml_new_graph_custom(ctx, 64 + kNodesPerLayer * shape_.layers, false);
  const auto input = [ctx](size_t n) {
    ggml_tensor* tensor = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, static_cast<int64_t>(n));
    ggml_set_input(tensor);
    return tensor;
  };
  tokens_ = input(step.tokens.size());
  positions_ = input(step.tokens.size());
  const size_t wanted = step.logit_rows.size();
  rows_ = wanted > 0 && wanted < step.tokens.size() ? input(wanted) : nullptr;

  ggml_tensor* x = ggml_get_rows(ctx, weights_.embedding, tokens_);
  if (shape_.architecture == Architecture::kGemma3) {
    x = ggml_scale(ctx, x, std::sqrt(static_cast<float>(shape_.embedding)));
  }
  for (Layer& layer : layers_) {
    const LayerWeights& w = weights_.layers[layer.index];
    ggml_tensor* y = attention(ctx, w, layer, norm(ctx, x, w.attention_norm));
    if (layer.index + 1 == shape_.layers) {  // only these rows go on
      if (wanted == 0) {
        logits_ = nullptr;
        ggml_build_forward_expand(graph, y);
        return graph;
      }
      if (rows_) {
        x = ggml_get_rows(ctx, x, rows_);
        y = ggml_get_rows(ctx, y, rows_);
      }
    }
    if (w.attention_post_norm) y = norm(ctx, y, w.attention_post_norm);
    x = ggml_add(ctx, y, x);
    y = feed_forward(ctx, w, norm(ctx, x, w.ff_norm));
    if (w.ff_post_norm) y = norm(ctx, y, w.ff_post_norm);
    x = ggml_add(ctx, y, x);
  }
  logits_ = multiply(ctx, weights_.output, norm(ctx, x, weights_.output_norm), weights_.output_bias);
  if (shape_.final_soft_cap > 0) {
    logits_ = ggml_scale(ctx, logits_, 1 / shape_.final_soft_cap);
    logits_ = ggml_scale(ctx, ggml_tanh(ctx, logits_), shape_.final_soft_cap);
  }
  ggml_set_output(logits_);
  ggml_build_forward_expand(graph, logits_);
  return graph;
}

ggml_tensor* Forward::norm(ggml_context* ctx, ggml_tensor* x, ggml_tensor* weight) {
  return ggml_mul(ctx, ggml_rms_norm(ctx, x, shape_.epsilon), weight);
}

ggml_tensor* Forward::rope(ggml_context* ctx, ggml_tensor* x, bool local) {
  const Rope& r = shape_.rope;
  return ggml_rope_ext(ctx, x, positions_, weights_.rope_factors, r.dims, r.mode, r.original_context,
                       local ? r.local_base : r.base, local ? 1.0f : r.scale, r.ext_factor, r.attn_factor,
                       r.beta_fast, r.beta_slow);
}

ggml_tensor* Forward::attention(ggml_context* ctx, const LayerWeights& w, Layer& layer, ggml_tensor* x) {
  const int64_t tokens = x->ne[1];
  const auto heads = [&](ggml_tensor* y, int n) {
    return ggml_reshape_3d(ctx, y, shape_.head_dim, n, tokens);
  };
  ggml_tensor* q = heads(multiply(ctx, w.q, x, w.q_bias), shape_.heads);
  ggml_tensor* k = heads(multiply(ctx, w.k, x, w.k_bias), shape_.kv_heads);
  ggml_tensor* v = heads(multiply(ctx, w.v, x, w.v_bias), shape_.kv_heads);
  if (w.q_norm) q = norm(ctx, q, w.q_norm);
  if (w.k_norm) k = norm(ctx, k, w.k_norm);
  const bool local = shape_.local[layer.index];
  q = rope(ctx, q, local);
  k = rope(ctx, k, local);
  if (config_.dtype == PM_BF16) {
    q = ggml_cast(ctx, q, GGML_TYPE_BF16);
    k = ggml_cast(ctx, k, GGML_TYPE_BF16);
    v = ggml_cast(ctx, v, GGML_TYPE_BF16);
  }
  // Two operators, because ggml's threads meet between operators, as they must between the phases.
  ggml_tensor* arguments[] = {q, k, v};
  ggml_tensor* out = ggml_custom_4d(ctx, GGML_TYPE_F32, int64_t{shape_.heads} * shape_.head_dim, tokens, 1, 1,
                                    arguments, 3, store, GGML_N_TASKS_MAX, &layer);
  out = ggml_custom_inplace(ctx, out, arguments, 3, attend, GGML_N_TASKS_MAX, &layer);
  if (on_attention) out = ggml_custom_inplace(ctx, out, arguments, 3, report, GGML_N_TASKS_MAX, &layer);
  return multiply(ctx, w.out, out, w.out_bias);
}

ggml_tensor* Forward::multiply(ggml_context* ctx, ggml_tensor* weight, ggml_tensor* x, ggml_tensor* bias) {
  ggml_tensor* y = ggml_mul_mat(ctx, batch_weights_.choose(weight, x->ne[1]), x);
  return bias ? ggml_add(ctx, y, bias) : y;
}

ggml_tensor* Forward::feed_forward(ggml_context* ctx, const LayerWeights& w, ggml_tensor* x) {
  ggml_tensor* gate = multiply(ctx, w.gate, x);
  ggml_tensor* up = multiply(ctx, w.up, x);
  ggml_tensor* y = shape_.architecture == Architecture::kGemma3 ? ggml_geglu_split(ctx, gate, up)
                                                                : ggml_swiglu_split(ctx, gate, up);
  return multiply(ctx, w.down, y);
}

void Forward::store(ggml_tensor* out, int thread, int threads, void* layer) {
  const auto& self = *static_cast<Layer*>(layer);
  self.forward->run_phase(self, 0, out->src, out->data, thread, threads);
}

void Forward::attend(ggml_tensor* out, int thread, int threads, void* layer) {
  const auto& self = *static_cast<Layer*>(layer);
  self.forward->run_phase(self, 1, out->src + 1, out->data, thread, threads);
}

void Forward::report(ggml_tensor* out, int thread, int, void* layer) {
  if (thread != 0) return;
  const auto& self = *static_cast<Layer*>(layer);
  const auto values = [out](int source) { return static_cast<const float*>(out->src[source]->data); };
  self.forward->on_attention({self.index, self.forward->windows_[self.plan], self.forward->step_, values(1),
                              values(2), values(3), static_cast<const float*>(out->data)});
}

void Forward::run_phase(const Layer& layer, int phase, ggml_tensor* const* qkv, void* out, int thread,
                        int threads) {
  const double begin = now();
  Args args;
  args.q = qkv[0]->data;
  args.k_new = qkv[1]->data;
  args.v_new = qkv[2]->data;
  args.out = out;
  args.k_cache = layer.cache;
  args.v_cache =
      layer.cache + size_t(config_.page_size) * config_.head_dim * dtype_bytes(config_.cache_dtype);
  args.scale = shape_.attention_scale;
  const pm_status status = pm_run_part(plans_[layer.plan].get(), &args, workspace_.data(), workspace_.bytes(),
                                       phase, thread, threads);
  if (status != PM_OK) failed_ = status;
  times_[thread].seconds += now() - begin;
}

void Forward::account(const Step& step, double attention_seconds) {
  ++stats_.steps;
  stats_.computed_tokens += std::ssize(step.tokens);
  stats_.attention_seconds += attention_seconds;
  const bool decodes = step.tokens.size() == step.pieces.size();
  double bytes = 0, flops = 0;
  for (const Layer& layer : layers_) {
    const int window = windows_[layer.plan];
    for (const Step::Piece& piece : step.pieces) {
      const int end = piece.first + piece.count;
      const int keys = window > 0 ? std::min(end, window + piece.count - 1) : end;
      bytes += 2.0 * keys * config_.num_kv_heads * config_.head_dim * dtype_bytes(config_.cache_dtype);
      flops += 4.0 * config_.head_dim * config_.num_heads * visible_pairs(piece.first, piece.count, window);
    }
  }
  if (decodes) {
    stats_.decode_bytes += bytes;
    stats_.decode_attention_seconds += attention_seconds;
  } else {
    stats_.prefill_flops += flops;
    stats_.prefill_attention_seconds += attention_seconds;
  }
}

}  // namespace pagemill::engine
