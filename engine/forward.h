// One step of the model: ggml does everything but attention, which is a custom operator on ggml's threads.
#ifndef PAGEMILL_ENGINE_FORWARD_H_
#define PAGEMILL_ENGINE_FORWARD_H_

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>

#include <atomic>
#include <functional>
#include <memory>
#include <pagemill/engine.hpp>
#include <vector>

#include "batch_weights.h"
#include "memory.h"
#include "scheduler.h"
#include "weights.h"

namespace pagemill::engine {

// What an attention operator is about to compute: for tests.
struct AttentionCall {
  int layer;
  int window;  // tokens that a query sees, its own included; 0 = all
  const Step* step;
  const float *q, *k, *v;  // [T, H, D], [T, K, D] twice
  const float* out;        // [T, H, D]
};

class Forward {
 public:
  // options: complete.
  Forward(const Weights& weights, const Options& options);
  ~Forward();

  // Logits [R, vocabulary] of the step's logit_rows; valid until the next run.
  const float* run(const Step& step);
  HugeBuffer& cache() { return cache_; }  // [layers, pages, K, 2, P * D]; for benchmarks
  // What was measured, nothing else.
  const Stats& stats() const { return stats_; }

  // Called after each layer's attention, on one thread. f32 caches only, as others round q first.
  std::function<void(const AttentionCall&)> on_attention;

 private:
  // What the two operators of a layer share; ggml hands it to each thread.
  struct Layer {
    Forward* forward;
    int index;
    size_t plan;  // index into plans_
    std::byte* cache;
  };
  struct alignas(64) ThreadTime {
    double seconds = 0;
  };
  template <auto free>
  struct Free {
    template <class T>
    void operator()(T* p) const {
      free(p);
    }
  };

  static void store(ggml_tensor* out, int thread, int threads, void* layer);
  static void attend(ggml_tensor* out, int thread, int threads, void* layer);
  static void report(ggml_tensor* out, int thread, int threads, void* layer);
  void run_phase(const Layer& layer, int phase, ggml_tensor* const* qkv, void* out, int thread, int threads);

  void plan(const Step& step);
  ggml_cgraph* build(const Step& step);
  ggml_tensor* attention(ggml_context* ctx, const LayerWeights& w, Layer& layer, ggml_tensor* x);
  ggml_tensor* feed_forward(ggml_context* ctx, const LayerWeights& w, ggml_tensor* x);
  // weight * x + bias; bias may be null.
  ggml_tensor* multiply(ggml_context* ctx, ggml_tensor* weight, ggml_tensor* x, ggml_tensor* bias = nullptr);
  ggml_tensor* norm(ggml_context* ctx, ggml_tensor* x, ggml_tensor* weight);
  ggml_tensor* rope(ggml_context* ctx, ggml_tensor* x, bool local);
  void account(const Step& step, double attention_seconds);

  const Weights& weights_;
  const BatchWeights batch_weights_;
  const Shape& shape_;
  int threads_;
  Config config_;
  std::vector<Plan> plans_;   // one for each window
  std::vector<int> windows_;  // tokens; 0 = all
  Workspace workspace_;
  HugeBuffer cache_;
  std::vector<Layer> layers_;
  const Step* step_ = nullptr;  // the one that runs
  std::atomic<int> failed_ = 0;
  std::vector<ThreadTime> times_;  // [threads] in attention, of the step that runs

  std::unique_ptr<ggml_backend, Free<ggml_backend_free>> backend_;
  std::unique_ptr<ggml_threadpool, Free<ggml_threadpool_free>> pool_;
  std::unique_ptr<ggml_gallocr, Free<ggml_gallocr_free>> allocator_;
  std::vector<std::byte> graph_memory_;
  std::unique_ptr<ggml_context, Free<ggml_free>> graph_context_;
  ggml_tensor *tokens_ = nullptr, *positions_ = nullptr, *rows_ = nullptr, *logits_ = nullptr;
  Stats stats_;
};

}  // namespace pagemill::engine

#endif  // PAGEMILL_ENGINE_FORWARD_H_
