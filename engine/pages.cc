#include "pages.h"

#include <cassert>
#include <functional>

namespace pagemill::engine {

size_t PagePool::Hash::operator()(const Key& key) const {
  size_t hash = std::hash<BlockId>{}(key.prefix);
  for (int32_t token : key.tokens)
    hash = (hash ^ static_cast<uint32_t>(token)) * 0x100000001b3u + (hash >> 29);
  return hash;
}

PagePool::PagePool(int32_t pages) : holders_(pages), block_of_(pages), idle_at_(pages, idle_.end()) {
  for (int32_t page = pages; page-- > 0;) empty_.push_back(page);
}

std::optional<int32_t> PagePool::take() {
  int32_t page;
  if (!empty_.empty()) {
    page = empty_.back();
    empty_.pop_back();
  } else if (!idle_.empty()) {
    page = idle_.front();
    idle_.pop_front();
    blocks_.erase(blocks_.find(block_of_[page]->first));
    block_of_[page] = nullptr;
  } else {
    return std::nullopt;
  }
  holders_[page] = 1;
  return page;
}

void PagePool::release(int32_t page) {
  assert(holders_[page] > 0);
  if (--holders_[page] > 0) return;
  if (block_of_[page]) {
    idle_at_[page] = idle_.insert(idle_.end(), page);
  } else {
    empty_.push_back(page);
  }
}

std::optional<PagePool::Hit> PagePool::share(BlockId prefix, std::span<const int32_t> tokens) {
  const auto found = blocks_.find({prefix, {tokens.begin(), tokens.end()}});
  if (found == blocks_.end()) return std::nullopt;
  const Block& block = found->second;
  if (holders_[block.page]++ == 0) idle_.erase(idle_at_[block.page]);
  return Hit{block.page, block.id};
}

std::optional<PagePool::Look> PagePool::look(BlockId prefix, std::span<const int32_t> tokens) const {
  const auto found = blocks_.find({prefix, {tokens.begin(), tokens.end()}});
  if (found == blocks_.end()) return std::nullopt;
  return Look{found->second.id, holders_[found->second.page] > 0};
}

BlockId PagePool::publish(int32_t page, BlockId prefix, std::span<const int32_t> tokens) {
  assert(holders_[page] == 1 && !block_of_[page]);
  const auto [entry, added] =
      blocks_.try_emplace({prefix, {tokens.begin(), tokens.end()}}, Block{next_block_, page});
  if (added) {
    ++next_block_;
    block_of_[page] = &*entry;
  }
  return entry->second.id;
}

}  // namespace pagemill::engine
