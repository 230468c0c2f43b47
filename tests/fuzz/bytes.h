// What a fuzz target draws its decisions from, and how it says that something is wrong.
#ifndef PAGEMILL_TESTS_FUZZ_BYTES_H_
#define PAGEMILL_TESTS_FUZZ_BYTES_H_

#include <fmt/format.h>
#include <fuzzer/FuzzedDataProvider.h>

#include <cstdlib>
#include <initializer_list>
#include <string_view>

namespace pagemill {

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : provider_(data, size) {}
  template <class T>
  T any() {
    return provider_.ConsumeIntegral<T>();
  }
  int between(int low, int high) { return provider_.ConsumeIntegralInRange(low, high); }
  bool one_in(int n) { return between(1, n) == n; }  // false once no bytes are left
  template <class T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[between(0, static_cast<int>(values.size()) - 1)];
  }
  bool left() { return provider_.remaining_bytes() > 0; }

 private:
  FuzzedDataProvider provider_;
};

// The input is a finding.
inline void demand(bool holds, std::string_view what, std::string_view detail = "") {
  if (holds) return;
  fmt::print(stderr, "{}\n{}\n", what, detail);
  std::abort();
}

}  // namespace pagemill

#endif  // PAGEMILL_TESTS_FUZZ_BYTES_H_
