#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cases.h"
#include "reference.h"

namespace pagemill {
namespace {

void allow(std::vector<GuardedBuffer>& buffers, GuardedBuffer::Access access) {
  for (GuardedBuffer& buffer : buffers) buffer.allow(access);
}

// p, which points into buffer, moved to the copy's bytes.
template <class T>
T* moved(T* p, const GuardedBuffer& buffer, std::vector<std::byte>& copy) {
  return reinterpret_cast<T*>(copy.data() + (reinterpret_cast<const std::byte*>(p) - buffer.data()));
}

bool power_of_two(float x) {
  int exponent;
  return std::frexp(x, &exponent) == 0.5f;
}

using Bytes = std::vector<std::vector<std::byte>>;  // of each buffer

enum class Scales { kAsTheyAre, kSmaller, kLarger };  // by the last bit of an f32

// The cache as the reference leaves it.
Bytes stored(const GuardedCall& c, Scales scales) {
  Bytes bytes;
  bytes.reserve(c.cache.size());
  for (const GuardedBuffer& buffer : c.cache) bytes.push_back(buffer.saved());
  pm_args args = c.args;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (c.cache[i].holds(args.k_cache)) args.k_cache = moved(args.k_cache, c.cache[i], bytes[i]);
    if (c.cache[i].holds(args.v_cache)) args.v_cache = moved(args.v_cache, c.cache[i], bytes[i]);
  }
  // A power of two divides exactly; any other scale leaves an f32 that is rounded, once more, to the cache's
  // dtype.
  for (float* scale : {&args.k_scale, &args.v_scale})
    if (scales != Scales::kAsTheyAre && !power_of_two(*scale))
      *scale = std::nextafter(*scale, scales == Scales::kSmaller ? 0 : INFINITY);
  reference::store(c.config, c.batch, args);
  return bytes;
}

// The same number or NaN as one of the three.
bool one_of(pm_dtype dtype, const void* got, std::initializer_list<const void*> wanted, int64_t i) {
  const double x = reference::get(dtype, got, i);
  return std::ranges::any_of(wanted, [&](const void* want) {
    const double y = reference::get(dtype, want, i);
    return x == y || (std::isnan(x) && std::isnan(y));
  });
}

}  // namespace

std::string verify_cache(const GuardedCall& c) {
  const Bytes want = stored(c, Scales::kAsTheyAre), low = stored(c, Scales::kSmaller),
              high = stored(c, Scales::kLarger);
  const pm_dtype dtype = c.config.cache_dtype;
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::equal(want[i].begin(), want[i].end(), c.cache[i].data())) continue;
    const size_t bytes = reference::size_of(dtype);
    for (int64_t e = 0; e < int64_t(want[i].size() / bytes); ++e) {
      const std::byte *got = c.cache[i].data(), *before = c.cache[i].saved().data(), *after = want[i].data();
      bool untouched = std::memcmp(before + e * bytes, after + e * bytes, bytes) == 0;
      bool right = untouched ? std::memcmp(got + e * bytes, after + e * bytes, bytes) == 0
                             : one_of(dtype, got, {after, low[i].data(), high[i].data()}, e);
      if (!right)
        return fmt::format("cache buffer {}, element {}: {} where {} was expected{}", i, e,
                           reference::get(dtype, got, e), reference::get(dtype, after, e),
                           untouched ? " (not to be written)" : "");
    }
  }
  return "";
}

namespace {

// Everything in out and lse but the rows of the sequences is as it was.
std::string check_surroundings(const GuardedCall& c) {
  std::vector<std::vector<std::byte>> rest;
  rest.reserve(c.out.size());
  for (const GuardedBuffer& buffer : c.out) rest.emplace_back(buffer.data(), buffer.data() + buffer.size());
  auto revert = [&](size_t i, const void* p, size_t bytes) {
    size_t offset = static_cast<const std::byte*>(p) - c.out[i].data();
    std::memcpy(rest[i].data() + offset, c.out[i].saved().data() + offset, bytes);
  };
  const pm_args full = reference::with_strides(c.config, c.args);
  for (int b = 0; b < c.batch.num_seqs; ++b)
    for (int i = 0; i < c.q_len(b); ++i) {
      for (int h = 0; h < c.config.num_heads; ++h)
        revert(0, c.out_row(b, i, h), c.config.head_dim * reference::size_of(c.config.out_dtype));
      if (full.lse)
        revert(1, full.lse + (c.batch.query_start[b] + i) * full.lse_stride_token,
               c.config.num_heads * sizeof(float));
    }
  for (size_t i = 0; i < rest.size(); ++i)
    if (rest[i] != c.out[i].saved())
      return fmt::format("{} was written outside the rows of the sequences", i == 0 ? "out" : "lse");
  return "";
}

void check_rows(const GuardedCall& c, double multiplies, Verdict& verdict) {
  const int H = c.config.num_heads;
  double work = 0;
  for (int b = 0; b < c.batch.num_seqs; ++b)
    for (int i = 0; i < c.q_len(b); ++i) {
      auto range = reference::visible(c.config, c.batch, b, i);
      work += double(range.end - range.begin) * H * c.config.head_dim;
    }
  const int64_t step = std::max<int64_t>(1, std::llround(work / multiplies));
  int64_t count = 0;
  for (int b = 0; b < c.batch.num_seqs; ++b)
    for (int i = 0; i < c.q_len(b); ++i)
      for (int h = 0; h < H; ++h) {
        bool edge = (i == 0 && h == 0) || (i == c.q_len(b) - 1 && h == H - 1);
        if (!edge && ++count * 7919 % step != 0) continue;
        auto row = reference::attend_row(c.config, c.batch, c.args, b, i, h);
        double out = reference::out_error(c.config, row, c.out_row(b, i, h));
        double lse = c.args.lse ? reference::lse_error(c.config, row, c.lse(b, i, h)) : 0;
        verdict.worst_out = std::max(verdict.worst_out, out);
        verdict.worst_lse = std::max(verdict.worst_lse, lse);
        ++verdict.rows;
        if ((out > 1 || lse > 1) && verdict.problem.empty())
          verdict.problem =
              fmt::format("sequence {}, query {}, head {} ({} keys): {} of out's bound, {} of lse's", b, i, h,
                          row.keys, out, lse);
      }
}

}  // namespace

void run(Case& c, const Call& call) {
  Plan plan(c.config, c.batch);
  GuardedBuffer workspace(plan.stats().workspace_bytes, c.spec.edge, 64);
  allow(c.metadata, GuardedBuffer::Access::kNone);
  allow(c.inputs, GuardedBuffer::Access::kRead);
  if (!c.config.write_cache) allow(c.cache, GuardedBuffer::Access::kRead);
  pm_status status = call(plan.get(), &c.args, workspace.data(), workspace.size());
  allow(c.metadata, GuardedBuffer::Access::kWrite);
  allow(c.inputs, GuardedBuffer::Access::kWrite);
  allow(c.cache, GuardedBuffer::Access::kWrite);
  check(status);
}

void run(Case& c, const pm_executor* executor) {
  run(c, [executor](const pm_plan* plan, const pm_args* args, void* workspace, size_t bytes) {
    return pm_run(plan, args, workspace, bytes, executor);
  });
}

Verdict verify(const GuardedCall& c, double multiplies) {
  Verdict verdict;
  verdict.problem = verify_cache(c);
  if (verdict.problem.empty()) verdict.problem = check_surroundings(c);
  check_rows(c, multiplies, verdict);
  return verdict;
}

std::vector<const char*> available_isas() {
  std::vector<const char*> names;
  for (int32_t i = 0; i < pm_isa_count(); ++i) {
    pm_isa_info info{};
    info.struct_size = sizeof info;
    check(pm_isa_get(i, &info));
    if (info.available) names.push_back(info.name);
  }
  return names;
}

}  // namespace pagemill
