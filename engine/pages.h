// The pages of the cache: who holds them, and which blocks of tokens they still have the keys and values of.
#ifndef PAGEMILL_ENGINE_PAGES_H_
#define PAGEMILL_ENGINE_PAGES_H_

#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

namespace pagemill::engine {

// A published block: page_size tokens after a certain prefix. Ids are never used twice.
using BlockId = int64_t;
constexpr BlockId kNoBlock = -1;  // the prefix of a sequence's first block

class PagePool {
 public:
  explicit PagePool(int32_t pages);

  // A page for one holder, who may write it. Of those that nobody holds, one without a block if there is one,
  // else that of the least recently released block, which is forgotten. Nothing if all are held.
  std::optional<int32_t> take();
  // Gives up one hold. Blocks of pages that nobody holds stay until their page is taken.
  void release(int32_t page);

  struct Hit {
    int32_t page;
    BlockId block;
  };
  // The page of these tokens after the prefix, with a hold for the caller, who must not write it.
  std::optional<Hit> share(BlockId prefix, std::span<const int32_t> tokens);
  // The same without taking hold: whether there is one, and whether somebody holds it.
  struct Look {
    BlockId block;
    bool held;
  };
  std::optional<Look> look(BlockId prefix, std::span<const int32_t> tokens) const;
  // From now on the page, held by the caller alone, has these tokens and is not written any more. If another
  // page has them already, that one stays the one to share. Returns the block.
  BlockId publish(int32_t page, BlockId prefix, std::span<const int32_t> tokens);

  int32_t pages() const { return static_cast<int32_t>(holders_.size()); }
  int32_t available() const { return static_cast<int32_t>(empty_.size() + idle_.size()); }
  int32_t holders(int32_t page) const { return holders_[page]; }
  bool published(int32_t page) const { return block_of_[page] != nullptr; }

 private:
  struct Key {
    BlockId prefix;
    std::vector<int32_t> tokens;
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    size_t operator()(const Key& key) const;
  };
  struct Block {
    BlockId id;
    int32_t page;
  };
  using Blocks = std::unordered_map<Key, Block, Hash>;

  std::vector<int32_t> holders_;                       // [pages]
  std::vector<Blocks::value_type*> block_of_;          // [pages] what the page is shared as, or null
  std::vector<int32_t> empty_;                         // neither held nor published
  std::list<int32_t> idle_;                            // published, not held; least recently released first
  std::vector<std::list<int32_t>::iterator> idle_at_;  // [pages]
  Blocks blocks_;
  BlockId next_block_ = 0;
};

}  // namespace pagemill::engine

#endif  // PAGEMILL_ENGINE_PAGES_H_
