// Right calls to be spoilt, and what must hold after a call that fails.
#ifndef PAGEMILL_TESTS_MISTAKES_H_
#define PAGEMILL_TESTS_MISTAKES_H_

#include <gmock/gmock.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cases.h"

namespace pagemill {

// Three sequences, pages of 16: 2 pages, 3 pages, 1 page.
inline Spec good(pm_layout layout = PM_TILES) {
  Spec spec;
  spec.num_heads = 4, spec.num_kv_heads = 2;
  spec.dtype = spec.out_dtype = spec.cache_dtype = PM_BF16;
  spec.layout = layout;
  spec.seqs = {{0, 3, 20, {}, {}}, {1, 1, 33, {}, {}}, {2, 2, 2, {}, {}}};
  spec.window_left = 100, spec.window_right = 100;
  spec.sinks = spec.alibi = true;
  if (layout == PM_NO_CACHE)
    for (SequenceSpec& s : spec.seqs) s.kv_len = s.q_len;
  return spec;
}

inline Spec read_only(bool causal) {
  Spec spec = good();
  spec.write_cache = false, spec.causal = causal;
  return spec;
}

// The metadata of a case, to be spoilt.
inline int32_t* edit(const int32_t* p) {
  return const_cast<int32_t*>(p);
}
inline int32_t* entry(Case& c, int seq, int page) {
  return edit(c.batch.page_table) + seq * c.batch.pages_per_seq + page;
}

// Not a byte of the caller's memory has changed.
inline void expect_untouched(const Case& c) {
  for (const auto* group : {&c.inputs, &c.cache, &c.out})
    for (const GuardedBuffer& buffer : *group)
      EXPECT_TRUE(std::equal(buffer.saved().begin(), buffer.saved().end(), buffer.data()));
}

inline void expect_message(const std::vector<std::string>& parts) {
  for (const std::string& part : parts) EXPECT_THAT(pm_last_error(), testing::HasSubstr(part));
}

}  // namespace pagemill

#endif  // PAGEMILL_TESTS_MISTAKES_H_
