#include "memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <utility>

namespace pagemill {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t round_up(size_t bytes) {
  return (bytes + kHugePage - 1) / kHugePage * kHugePage;
}

}  // namespace

HugeBuffer::HugeBuffer(size_t bytes) {
  bytes_ = round_up(bytes);
  if (bytes_ == 0) return;
  void* mapped =
      mmap(nullptr, bytes_ + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  const size_t before = round_up(reinterpret_cast<uintptr_t>(mapped)) - reinterpret_cast<uintptr_t>(mapped);
  data_ = static_cast<std::byte*>(mapped) + before;
  if (before) munmap(mapped, before);
  if (before < kHugePage) munmap(data_ + bytes_, kHugePage - before);
  madvise(data_, bytes_, MADV_HUGEPAGE);  // refused: small pages, for the peaks as for the work
}

HugeBuffer::HugeBuffer(HugeBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

HugeBuffer& HugeBuffer::operator=(HugeBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

HugeBuffer::~HugeBuffer() {
  if (data_) munmap(data_, bytes_);
}

}  // namespace pagemill
