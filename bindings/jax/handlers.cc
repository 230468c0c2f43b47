#include "handlers.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>
#include <string>

#include "../python/workspaces.h"
#include "plan_cache.h"
#include "xla/ffi/api/ffi.h"
#include "xla_pool.h"

namespace pagemill::jax {
namespace {

namespace ffi = xla::ffi;
namespace nb = nanobind;
using Int32s = ffi::Buffer<ffi::DataType::S32, 1>;
using Floats = ffi::Buffer<ffi::DataType::F32, 1>;

// Shapes agree: pagemill/jax/checks.py has looked at them.
struct Tensors {
  ffi::AnyBuffer q;      // [T, H, D]
  ffi::AnyBuffer k_new;  // [T, K, D]
  ffi::AnyBuffer v_new;  // [T, K, D]
  ffi::AnyBuffer cache;  // [pages, P, rows / pack, pack, lanes]
  Int32s kv_lens;        // [max_seqs]
  Int32s page_indices;   // [max_seqs * pages_per_seq]
  Int32s query_starts;   // [max_seqs + 1]
  Int32s distribution;   // [3]
  Floats sinks;          // [H], or [0]
  ffi::AnyBuffer out;    // [T, H, D]
};

struct Options {
  bool causal, write_cache;
  int64_t window;  // keys that a query sees, itself included; 0: no bound
  float scale, soft_cap;
  bool head64;  // a row of the cache holds K and V of a head; otherwise they are rows of their own, in turn
};

pm_dtype dtype_of(const ffi::AnyBuffer& buffer) {
  switch (buffer.element_type()) {
    case ffi::DataType::F32: return PM_F32;
    case ffi::DataType::BF16: return PM_BF16;
    case ffi::DataType::F16: return PM_F16;
    case ffi::DataType::F8E4M3FN: return PM_F8E4M3;
    case ffi::DataType::F8E5M2: return PM_F8E5M2;
    default: throw Unsupported("an array's dtype: expected one of the library");
  }
}

int64_t bytes_of(const ffi::AnyBuffer& buffer) {
  return static_cast<int64_t>(ffi::ByteWidth(buffer.element_type()));
}

// The cache as [pages, P, rows, lanes].
struct CacheShape {
  explicit CacheShape(const ffi::AnyBuffer& cache)
      : pages(cache.dimensions()[0]),
        page_size(cache.dimensions()[1]),
        rows(cache.dimensions()[2] * cache.dimensions()[3]),
        lanes(cache.dimensions()[4]) {}
  int64_t pages, page_size, rows, lanes;
};

Config config_of(const Tensors& t, const Options& options, int32_t threads) {
  const CacheShape shape(t.cache);
  Config config;
  config.num_heads = static_cast<int32_t>(t.q.dimensions()[1]);
  config.num_kv_heads = static_cast<int32_t>(t.k_new.dimensions()[1]);
  config.head_dim = static_cast<int32_t>(t.q.dimensions()[2]);
  config.dtype = dtype_of(t.q);
  config.out_dtype = dtype_of(t.out);
  config.cache_dtype = dtype_of(t.cache);
  config.layout = PM_ROWS;
  config.page_size = static_cast<int32_t>(shape.page_size);
  config.num_pages = shape.pages;
  config.causal = options.causal;
  config.window_left = static_cast<int32_t>(options.window) - 1;
  config.write_cache = options.write_cache;
  config.threads = threads;
  return config;
}

std::string at_least(const char* name, int32_t value, int32_t least) {
  return std::string(name) + " = " + std::to_string(value) + ": expected at least " + std::to_string(least);
}

// The first distribution[2] sequences; which of them only decode, the plan sees for itself.
StepMetadata metadata_of(const Tensors& t) {
  const int32_t* distribution = t.distribution.typed_data();
  const auto max_seqs = static_cast<int32_t>(t.kv_lens.element_count());
  int32_t least = 0;
  for (int i = 0; i < 3; ++i) {
    const std::string name = "distribution[" + std::to_string(i) + "]";
    if (distribution[i] < least) throw InvalidArgument(at_least(name.c_str(), distribution[i], least));
    least = distribution[i];
  }
  if (least > max_seqs) {
    throw InvalidArgument("distribution[2] = " + std::to_string(least) + ": expected at most the " +
                          std::to_string(max_seqs) + " sequences of kv_lens");
  }
  const auto num_seqs = static_cast<size_t>(least);
  const size_t pages_per_seq = max_seqs ? t.page_indices.element_count() / static_cast<size_t>(max_seqs) : 0;
  return {{t.query_starts.typed_data(), num_seqs + 1},
          {t.kv_lens.typed_data(), num_seqs},
          {t.page_indices.typed_data(), num_seqs * pages_per_seq},
          static_cast<int32_t>(pages_per_seq)};
}

Args args_of(const Tensors& t, const Options& options) {
  const CacheShape shape(t.cache);
  Args args;
  args.q = t.q.untyped_data();
  args.k_new = t.k_new.untyped_data();
  args.v_new = t.v_new.untyped_data();
  args.out = t.out.untyped_data();
  const int64_t value = options.head64 ? shape.lanes / 2 : shape.lanes;  // from a key to its value
  args.k_cache = t.cache.untyped_data();
  args.v_cache = static_cast<std::byte*>(args.k_cache) + value * bytes_of(t.cache);
  args.k_stride_head = args.v_stride_head = (options.head64 ? 1 : 2) * shape.lanes;
  args.k_stride_token = args.v_stride_token = shape.rows * shape.lanes;
  args.k_stride_page = args.v_stride_page = shape.page_size * shape.rows * shape.lanes;
  args.scale = options.scale;
  args.soft_cap = options.soft_cap;
  if (t.sinks.element_count() > 0) args.sinks = t.sinks.typed_data();
  return args;
}

// Lanes past D, and rows that pad the heads to whole words, of every new token.
void clear_padding_of_cache(const Tensors& t, const Options& options, const StepMetadata& step) {
  const CacheShape shape(t.cache);
  const int64_t element = bytes_of(t.cache), row = shape.lanes * element;
  const int64_t used_rows = t.k_new.dimensions()[1] * (options.head64 ? 1 : 2);
  const int64_t used = options.head64 ? row : t.k_new.dimensions()[2] * element;
  if (used == row && used_rows == shape.rows) return;
  auto* cache = static_cast<std::byte*>(t.cache.untyped_data());
  for (size_t b = 0; b < step.kv_len.size(); ++b) {
    const int32_t* pages = step.page_table.data() + b * static_cast<size_t>(step.pages_per_seq);
    const int32_t q_len = step.query_start[b + 1] - step.query_start[b];
    for (int64_t key = step.kv_len[b] - q_len; key < step.kv_len[b]; ++key) {
      const int64_t slot = pages[key / shape.page_size] * shape.page_size + key % shape.page_size;
      std::byte* token = cache + slot * shape.rows * row;
      for (int64_t i = 0; used < row && i < used_rows; ++i) {
        std::memset(token + i * row + used, 0, static_cast<size_t>(row - used));
      }
      std::memset(token + used_rows * row, 0, static_cast<size_t>((shape.rows - used_rows) * row));
    }
  }
}

void clear_padding_of_out(const Tensors& t, const StepMetadata& step) {
  const int64_t row = t.out.dimensions()[1] * t.out.dimensions()[2] * bytes_of(t.out);
  const int64_t first = step.kv_len.empty() ? 0 : step.query_start.back();
  std::memset(static_cast<std::byte*>(t.out.untyped_data()) + first * row, 0,
              static_cast<size_t>((t.out.dimensions()[0] - first) * row));
}

void run(ffi::ThreadPool& xla, const Tensors& t, const Options& options) {
  const int32_t threads = static_cast<int32_t>(std::clamp<int64_t>(xla.num_threads(), 1, 4096));
  const StepMetadata step = metadata_of(t);
  if (!step.kv_len.empty() && step.query_start.back() > t.q.dimensions()[0]) {
    throw InvalidArgument("cu_q_lens[" + std::to_string(step.kv_len.size()) +
                          "] = " + std::to_string(step.query_start.back()) + ": expected at most the " +
                          std::to_string(t.q.dimensions()[0]) + " tokens of queries");
  }
  const auto planned = PlanCache::of_process().get(config_of(t, options, threads), step);
  const python::BorrowedWorkspace workspace(planned->workspace_bytes);
  XlaPool pool(xla);
  const Executor executor = host_executor(pool);
  planned->plan.run(args_of(t, options), workspace.get(), &executor);
  if (options.write_cache) clear_padding_of_cache(t, options, step);
  clear_padding_of_out(t, step);
}

ffi::Error run_caught(ffi::ThreadPool& xla, const Tensors& tensors, const Options& options) {
  try {
    run(xla, tensors, options);
  } catch (const InvalidArgument& error) {
    return ffi::Error::InvalidArgument(error.what());
  } catch (const Unsupported& error) {
    return ffi::Error(ffi::ErrorCode::kUnimplemented, error.what());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory");
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
  return ffi::Error::Success();
}

ffi::Error update_and_attend(ffi::ThreadPool xla, ffi::AnyBuffer q, ffi::AnyBuffer k_new,
                             ffi::AnyBuffer v_new, ffi::AnyBuffer cache, Int32s kv_lens, Int32s page_indices,
                             Int32s query_starts, Int32s distribution, Floats sinks,
                             ffi::Result<ffi::AnyBuffer> out, ffi::Result<ffi::AnyBuffer> updated,
                             bool causal, int64_t window, float scale, float soft_cap, bool head64) {
  if (cache.untyped_data() != updated->untyped_data()) {
    return ffi::Error::Internal("kv_cache: XLA gave the updated cache other memory");
  }
  return run_caught(xla,
                    {q, k_new, v_new, cache, kv_lens, page_indices, query_starts, distribution, sinks, *out},
                    {causal, true, window, scale, soft_cap, head64});
}

ffi::Error attend(ffi::ThreadPool xla, ffi::AnyBuffer q, ffi::AnyBuffer k_new, ffi::AnyBuffer v_new,
                  ffi::AnyBuffer cache, Int32s kv_lens, Int32s page_indices, Int32s query_starts,
                  Int32s distribution, Floats sinks, ffi::Result<ffi::AnyBuffer> out, bool causal,
                  int64_t window, float scale, float soft_cap, bool head64) {
  return run_caught(xla,
                    {q, k_new, v_new, cache, kv_lens, page_indices, query_starts, distribution, sinks, *out},
                    {causal, false, window, scale, soft_cap, head64});
}

auto with_inputs() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<Int32s>()
      .Arg<Int32s>()
      .Arg<Int32s>()
      .Arg<Int32s>()
      .Arg<Floats>()
      .Ret<ffi::AnyBuffer>();
}

template <class Binding>
auto with_options(Binding binding) {
  return std::move(binding)
      .template Attr<bool>("causal")
      .template Attr<int64_t>("window")
      .template Attr<float>("scale")
      .template Attr<float>("soft_cap")
      .template Attr<bool>("head64");
}

XLA_FFI_DEFINE_HANDLER(update_and_attend_handler, update_and_attend,
                       with_options(with_inputs().Ret<ffi::AnyBuffer>()));
XLA_FFI_DEFINE_HANDLER(attend_handler, attend, with_options(with_inputs()));

}  // namespace

void bind_handlers(nb::module_& m) {
  const auto capsule = [](XLA_FFI_Handler* handler) { return nb::capsule(reinterpret_cast<void*>(handler)); };
  nb::dict handlers;
  handlers["pagemill_update_and_attend"] = capsule(update_and_attend_handler);
  handlers["pagemill_attend"] = capsule(attend_handler);
  m.attr("jax_handlers") = handlers;
  m.def("jax_plans_made", [] { return PlanCache::of_process().plans_made(); });
  m.def(
      "expect_supported",
      [](int num_heads, int num_kv_heads, int head_dim, int64_t page_size) {
        Config config;
        config.num_heads = num_heads, config.num_kv_heads = num_kv_heads, config.head_dim = head_dim;
        config.layout = PM_ROWS;
        config.page_size = static_cast<int32_t>(page_size);
        Plan(config, Batch());
      },
      nb::kw_only(), nb::arg("num_heads"), nb::arg("num_kv_heads"), nb::arg("head_dim"),
      nb::arg("page_size"));
}

}  // namespace pagemill::jax
