// Any bytes as what callers ask of a scheduler: pages are never leaked, freed twice or shared for writing,
// every key that a sequence sees is one of its tokens, and every request comes to its end.
#include <algorithm>
#include <cstdint>

#include "bytes.h"
#include "random_requests.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using pagemill::engine::Limits;
  const uint8_t* const end = data + size;
  const auto choose = [&data, end](uint32_t n) { return data < end ? *data++ % n : 0; };
  Limits limits;
  limits.page_size = 1 + static_cast<int32_t>(choose(5));
  limits.pages = 1 + static_cast<int32_t>(choose(12));
  limits.token_budget = 1 + static_cast<int32_t>(choose(40));
  limits.max_seqs = 1 + static_cast<int32_t>(choose(std::min<uint32_t>(limits.token_budget, 8)));
  limits.logit_rows = limits.max_seqs + static_cast<int32_t>(choose(4));
  limits.prefix_cache = choose(4) != 0;
  pagemill::engine::RequestDriver driver(limits, choose);
  try {
    while (data < end) driver.act();
    driver.drain();
  } catch (const std::exception& error) {
    pagemill::demand(false, error.what());
  }
  return 0;
}
