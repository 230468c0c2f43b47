#include "plan/simulate.h"

#include <algorithm>
#include <numeric>

namespace pagemill {

void Simulation::replace_first(Thread thread) {
  const size_t n = threads_.size();
  size_t hole = 0;
  for (size_t child = 1; child < n; child = 2 * hole + 1) {
    if (child + 1 < n && threads_[child + 1].free < threads_[child].free) ++child;
    if (threads_[child].free >= thread.free) break;
    threads_[hole] = threads_[child];
    hole = child;
  }
  threads_[hole] = thread;
}

double Simulation::merge_ns(const Thread& thread) {
  if (thread.split_of < 0) return 0;
  const Merge& merge = work_->merges[static_cast<size_t>(thread.split_of / kv_heads_)];
  if (++arrivals_[static_cast<size_t>(thread.split_of)] < merge.num_splits) return 0;
  return merge_float_ * double(merge.num_splits) * merge.rows * record_ * thread.heads;
}

// Items that are repeated for the heads take the same time each. If the number of threads and of every item's
// repetitions have a common divisor, that many threads start together and stay together: one stands for them.
int32_t Simulation::threads_in_step(bool repeated, int32_t threads) const {
  int32_t together = threads;
  for (size_t i = 0; i < work_->items.size() && together > 1; ++i) {
    const Item& item = work_->items[i];
    const int32_t heads = item.kv_head_end - item.kv_head_begin;
    if (!repeated || kv_heads_ % heads != 0) return 1;
    together = std::gcd(together, kv_heads_ / heads);
  }
  return together;
}

double Simulation::run(const Work& work, bool repeated, int32_t threads, double limit) {
  constexpr double kTooLong = std::numeric_limits<double>::infinity();
  work_ = &work;
  const int32_t together = threads_in_step(repeated, threads);
  threads_.assign(static_cast<size_t>(threads / together), {0, -1, 0});
  arrivals_.assign(work.merges.size() * static_cast<size_t>(kv_heads_), 0);
  double last = 0;
  for (size_t i = 0; i < work.items.size(); ++i) {
    const Item& item = work.items[i];
    const int32_t heads = item.kv_head_end - item.kv_head_begin;
    const int32_t end_head = repeated ? kv_heads_ : item.kv_head_end;
    for (int32_t head = item.kv_head_begin; head < end_head; head += heads * together) {
      while (threads_.front().split_of >= 0) {
        const Thread& first = threads_.front();
        const double free = first.free + merge_ns(first);
        last = std::max(last, free);
        replace_first({free, -1, 0});
      }
      const double end = threads_.front().free + static_cast<double>(work.costs[i]);
      if (end > limit) return kTooLong;
      last = std::max(last, end);
      replace_first({end, item.merge < 0 ? -1 : item.merge * kv_heads_ + head, heads});
    }
  }
  std::sort(threads_.begin(), threads_.end(),
            [](const Thread& a, const Thread& b) { return a.free < b.free; });
  for (const Thread& thread : threads_) last = std::max(last, thread.free + merge_ns(thread));
  return last > limit ? kTooLong : last;
}

}  // namespace pagemill
