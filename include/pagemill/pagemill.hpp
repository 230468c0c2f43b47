// Pagemill: ragged paged attention for CPUs. C++20 API, a header-only layer over the C ABI
// (pagemill.h, which states shapes, units, meaning, aliasing and thread safety): ownership and
// exceptions, nothing else.
//
//   pagemill::Plan plan;
//   plan.build(config, batch);                      // once a step
//   pagemill::Workspace workspace(plan);
//   for (auto& layer : layers) plan.run(layer.args, workspace);
#ifndef PAGEMILL_PAGEMILL_HPP_
#define PAGEMILL_PAGEMILL_HPP_

#include <pagemill/pagemill.h>

#include <cstddef>
#include <memory>
#include <new>
#include <stdexcept>

namespace pagemill {

// The caller's mistake: the message names argument, value and expectation.
struct InvalidArgument : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// Legal, but this build or machine cannot do it.
struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws what a status other than PM_OK means, with the calling thread's last message.
inline void check(pm_status status) {
  switch (status) {
    case PM_OK: return;
    case PM_INVALID_ARGUMENT: throw InvalidArgument(pm_last_error());
    case PM_UNSUPPORTED: throw Unsupported(pm_last_error());
    case PM_OUT_OF_MEMORY: throw std::bad_alloc();
  }
  throw std::runtime_error(pm_last_error());
}

// The C structs, with their defaults.
struct Config : pm_config {
  Config() : pm_config PM_CONFIG_INIT {}
};
struct Batch : pm_batch {
  Batch() : pm_batch PM_BATCH_INIT {}
};
struct Args : pm_args {
  Args() : pm_args PM_ARGS_INIT {}
};
struct Cache : pm_cache {
  Cache() : pm_cache PM_CACHE_INIT {}
};
struct Executor : pm_executor {
  Executor() : pm_executor PM_EXECUTOR_INIT {}
};

class Plan;

// Memory for one run at a time. Grows, never shrinks.
class Workspace {
 public:
  Workspace() = default;
  explicit Workspace(size_t bytes) { reserve(bytes); }
  inline explicit Workspace(const Plan& plan);

  void reserve(size_t bytes) {
    if (bytes <= bytes_) return;
    data_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64})));
    bytes_ = bytes;
  }
  void* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t bytes_ = 0;
};

class Plan {
 public:
  Plan() {
    pm_plan* plan = nullptr;
    check(pm_plan_create(&plan));
    plan_.reset(plan);
  }
  Plan(const pm_config& config, const pm_batch& batch) : Plan() { build(config, batch); }

  void build(const pm_config& config, const pm_batch& batch) {
    check(pm_plan_build(plan_.get(), &config, &batch));
  }
  pm_plan_stats stats() const {
    pm_plan_stats stats{};
    stats.struct_size = sizeof stats;
    check(pm_plan_get_stats(plan_.get(), &stats));
    return stats;
  }
  pm_estimate estimate() const {
    pm_estimate estimate{};
    estimate.struct_size = sizeof estimate;
    check(pm_plan_estimate(plan_.get(), &estimate));
    return estimate;
  }
  // executor: null = the process's own pool.
  void run(const pm_args& args, const Workspace& ws, const pm_executor* executor = nullptr) const {
    check(pm_run(plan_.get(), &args, ws.data(), ws.bytes(), executor));
  }
  void store(const pm_args& args, const Workspace& ws, const pm_executor* executor = nullptr) const {
    check(pm_store(plan_.get(), &args, ws.data(), ws.bytes(), executor));
  }
  void attend(const pm_args& args, const Workspace& ws, const pm_executor* executor = nullptr) const {
    check(pm_attend(plan_.get(), &args, ws.data(), ws.bytes(), executor));
  }
  void run_part(const pm_args& args, const Workspace& ws, int phase, int part, int parts) const {
    check(pm_run_part(plan_.get(), &args, ws.data(), ws.bytes(), phase, part, parts));
  }
  pm_plan* get() const { return plan_.get(); }

 private:
  struct Free {
    void operator()(pm_plan* p) const { pm_plan_destroy(p); }
  };
  std::unique_ptr<pm_plan, Free> plan_;
};

inline Workspace::Workspace(const Plan& plan) : Workspace(plan.stats().workspace_bytes) {}

class Pool {
 public:
  // threads: workers and the caller; 0 = what affinity mask and cgroup quota allow.
  explicit Pool(int threads = 0) {
    pm_pool* pool = nullptr;
    check(pm_pool_create(threads, &pool));
    pool_.reset(pool);
  }
  Executor executor() const {
    Executor executor;
    check(pm_pool_executor(pool_.get(), &executor));
    return executor;
  }

 private:
  struct Free {
    void operator()(pm_pool* p) const { pm_pool_destroy(p); }
  };
  std::unique_ptr<pm_pool, Free> pool_;
};

// Plans and runs in one call.
inline void attention(const pm_config& config, const pm_batch& batch, const pm_args& args,
                      const pm_executor* executor = nullptr) {
  check(pm_attention(&config, &batch, &args, executor));
}

inline void merge(pm_dtype dtype, int64_t rows, int head_dim, const void* a, const float* lse_a,
                  const void* b, const float* lse_b, void* out, float* out_lse) {
  check(pm_merge(dtype, rows, head_dim, a, lse_a, b, lse_b, out, out_lse));
}

inline void convert(const pm_cache& src, const int32_t* src_pages, const pm_cache& dst,
                    const int32_t* dst_pages, int64_t n) {
  check(pm_convert(&src, src_pages, &dst, dst_pages, n));
}

// The host's pool: any callable f(n, body) that calls body(i) once for each i in [0, n) and returns when all
// are done. f must outlive the executor.
template <class ParallelFor>
Executor host_executor(ParallelFor& f) {
  Executor executor;
  executor.context = &f;
  executor.parallel_for = [](void* context, int32_t n, void (*task)(void*, int32_t), void* arg) {
    (*static_cast<ParallelFor*>(context))(n, [task, arg](int32_t i) { task(arg, i); });
  };
  return executor;
}

#ifdef _OPENMP
// The OpenMP runtime of the including program: the library itself links none.
inline Executor openmp_executor() {
  Executor executor;
  executor.parallel_for = [](void*, int32_t n, void (*task)(void*, int32_t), void* arg) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int32_t i = 0; i < n; ++i) task(arg, i);
  };
  return executor;
}
#endif

}  // namespace pagemill

#endif  // PAGEMILL_PAGEMILL_HPP_
