// Workspaces for runs at the same time: each takes one and gives it back, so that steps after the first
// allocate none.
#pragma once

#include <pagemill/pagemill.hpp>

#include <mutex>
#include <vector>

namespace pagemill::python {

class Workspaces {
 public:
  static Workspaces& of_process() {
    static auto* all = new Workspaces;  // threads of the host may outlive static objects
    return *all;
  }

  Workspace take(size_t bytes) {
    Workspace workspace;
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        workspace = std::move(free_.back());
        free_.pop_back();
      }
    }
    workspace.reserve(bytes);
    return workspace;
  }
  void give_back(Workspace workspace) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(workspace));
  }

 private:
  std::mutex mutex_;
  std::vector<Workspace> free_;
};

// One of them, for the length of a scope.
class BorrowedWorkspace {
 public:
  explicit BorrowedWorkspace(size_t bytes) : workspace_(Workspaces::of_process().take(bytes)) {}
  ~BorrowedWorkspace() { Workspaces::of_process().give_back(std::move(workspace_)); }
  BorrowedWorkspace(const BorrowedWorkspace&) = delete;
  BorrowedWorkspace& operator=(const BorrowedWorkspace&) = delete;
  const Workspace& get() const { return workspace_; }

 private:
  Workspace workspace_;
};

}  // namespace pagemill::python
