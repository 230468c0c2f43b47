#include "guarded.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <new>
#include <utility>

namespace pagemill {
namespace {

size_t page_bytes() {
  static const size_t bytes = size_t(sysconf(_SC_PAGESIZE));
  return bytes;
}

size_t round_up(size_t bytes, size_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

char fault_label[2048];
struct sigaction previous_segv, previous_bus;

// Returns to the faulting access with the previous handler in place, which then has its say.
void on_fault(int signal) {
  [[maybe_unused]] ssize_t written =
      write(STDERR_FILENO, fault_label, strnlen(fault_label, sizeof fault_label));
  sigaction(signal, signal == SIGSEGV ? &previous_segv : &previous_bus, nullptr);
}

}  // namespace

GuardedBuffer::GuardedBuffer(size_t bytes, Edge edge, size_t alignment)
    : size_(bytes), inner_(std::max(round_up(bytes, page_bytes()), page_bytes())) {
  const size_t guard = page_bytes();
  void* map = mmap(nullptr, inner_ + 2 * guard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) throw std::bad_alloc();
  inner_data_ = static_cast<std::byte*>(map) + guard;
  allow(Access::kWrite);
  data_ = edge == Edge::kEnd ? inner_data_ + (inner_ - bytes) / alignment * alignment : inner_data_;
  std::memset(data_, 0xff, bytes);
}

GuardedBuffer::GuardedBuffer(GuardedBuffer&& other) noexcept
    : size_(other.size_),
      inner_(other.inner_),
      inner_data_(std::exchange(other.inner_data_, nullptr)),
      data_(other.data_),
      saved_(std::move(other.saved_)) {}

GuardedBuffer::~GuardedBuffer() {
  if (inner_data_) munmap(inner_data_ - page_bytes(), inner_ + 2 * page_bytes());
}

void GuardedBuffer::allow(Access access) {
  int protection = access == Access::kWrite  ? PROT_READ | PROT_WRITE
                   : access == Access::kRead ? PROT_READ
                                             : PROT_NONE;
  if (mprotect(inner_data_, inner_, protection) != 0) throw std::bad_alloc();
}

void GuardedBuffer::restore() {
  allow(Access::kWrite);
  std::copy(saved_.begin(), saved_.end(), data_);
}

void label_faults(std::string_view line) {
  size_t length = line.copy(fault_label, sizeof fault_label - 2);
  fault_label[length] = '\n';
  fault_label[length + 1] = 0;
  static const bool installed = [] {
    struct sigaction action{};
    action.sa_handler = on_fault;
    return sigaction(SIGSEGV, &action, &previous_segv) == 0 && sigaction(SIGBUS, &action, &previous_bus) == 0;
  }();
  (void)installed;
}

}  // namespace pagemill
