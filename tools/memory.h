// Large zeroed buffers on huge pages where the system grants them: the same kind for caches and for the
// measurement of peaks.
#ifndef PAGEMILL_TOOLS_MEMORY_H_
#define PAGEMILL_TOOLS_MEMORY_H_

#include <cstddef>

namespace pagemill {

class HugeBuffer {
 public:
  HugeBuffer() = default;
  explicit HugeBuffer(size_t bytes);  // zeroed lazily by the system; throws std::bad_alloc
  HugeBuffer(HugeBuffer&& other) noexcept;
  HugeBuffer& operator=(HugeBuffer&& other) noexcept;
  ~HugeBuffer();

  template <class T = std::byte>
  T* data() const {
    return reinterpret_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;  // aligned to 2 MiB
  size_t bytes_ = 0;           // a multiple of 2 MiB
};

}  // namespace pagemill

#endif  // PAGEMILL_TOOLS_MEMORY_H_
