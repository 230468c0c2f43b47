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

// The same but for the last bit (where the library may divide by a scale in f32 first) or the sort of NaN.
bool same_rounding(pm_dtype dtype, const void* got, const void* want, int64_t i, bool exact) {
  double a = reference::get(dtype, got, i), b = reference::get(dtype, want, i);
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  double ulp = dtype == PM_BF16 ? 0x1p-7 : dtype == PM_F16 ? 0x1p-10 : 0x1p-23;
  return a == b || (!exact && std::fabs(a - b) <= ulp * std::fabs(b) + 0x1p-24);
}

bool power_of_two(float x) {
  int exponent;
  return std::frexp(x, &exponent) == 0.5f;
}

std::string check_cache(const GuardedCall& c) {
  std::vector<std::vector<std::byte>> want;
  want.reserve(c.cache.size());
  for (const GuardedBuffer& buffer : c.cache) want.push_back(buffer.saved());
  pm_args args = c.args;
  for (size_t i = 0; i < want.size(); ++i) {
    if (c.cache[i].holds(args.k_cache)) args.k_cache = moved(args.k_cache, c.cache[i], want[i]);
    if (c.cache[i].holds(args.v_cache)) args.v_cache = moved(args.v_cache, c.cache[i], want[i]);
  }
  reference::store(c.config, c.batch, args);
  const bool exact = power_of_two(c.args.k_scale) && power_of_two(c.args.v_scale);
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::equal(want[i].begin(), want[i].end(), c.cache[i].data())) continue;
    const size_t bytes = reference::size_of(c.config.cache_dtype);
    for (int64_t e = 0; e < int64_t(want[i].size() / bytes); ++e) {
      const std::byte *got = c.cache[i].data(), *before = c.cache[i].saved().data(), *after = want[i].data();
      bool untouched = std::memcmp(before + e * bytes, after + e * bytes, bytes) == 0;
      bool right = untouched ? std::memcmp(got + e * bytes, after + e * bytes, bytes) == 0
                             : same_rounding(c.config.cache_dtype, got, after, e, exact);
      if (!right)
        return fmt::format("cache buffer {}, element {}: {} where {} was expected{}", i, e,
                           reference::get(c.config.cache_dtype, got, e),
                           reference::get(c.config.cache_dtype, after, e),
                           untouched ? " (not to be written)" : "");
    }
  }
  return "";
}

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
  verdict.problem = check_cache(c);
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
