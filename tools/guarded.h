// Memory between two pages that fault: an access past either end stops the program.
#ifndef PAGEMILL_TOOLS_GUARDED_H_
#define PAGEMILL_TOOLS_GUARDED_H_

#include <cstddef>
#include <string_view>
#include <vector>

namespace pagemill {

// The side on which the memory touches its guard page to the byte (or to the alignment).
enum class Edge { kEnd, kStart };

class GuardedBuffer {
 public:
  enum class Access { kNone, kRead, kWrite };

  // Every byte is 0xff: NaN in every dtype.
  explicit GuardedBuffer(size_t bytes, Edge edge = Edge::kEnd, size_t alignment = 1);
  ~GuardedBuffer();
  GuardedBuffer(GuardedBuffer&& other) noexcept;
  GuardedBuffer& operator=(GuardedBuffer&&) = delete;

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  bool holds(const void* p) const { return p >= data_ && p < data_ + size_; }
  void allow(Access access);

  // The contents at the last save(): what restore() brings back.
  void save() { saved_.assign(data_, data_ + size_); }
  void restore();
  const std::vector<std::byte>& saved() const { return saved_; }

 private:
  size_t size_;
  size_t inner_;  // bytes between the guard pages
  std::byte* inner_data_;
  std::byte* data_;
  std::vector<std::byte> saved_;
};

// From now on a fault prints this line on stderr before the program ends.
void label_faults(std::string_view line);

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_GUARDED_H_
