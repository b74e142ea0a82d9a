// Keys and values of one sequence, in pages (kernels.h): the plain KV store of the whole-model step.
//
// Layers that see every key and layers with a window live in separate blocks: a block is one page of every layer of
// its group, so a sequence grows by one allocation per group and 64 tokens, and `trim` can let go of what no window
// reaches any more.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "arena.h"
#include "kernels.h"

namespace headway {

struct KVLayout {
  PageShape shape{};
  std::vector<int64_t> window;  // per layer; 0: sees everything
  std::vector<int> group;       // per layer: 0 full, 1 windowed
  std::vector<int> index;       // per layer: its place within a block of its group
  int64_t layers_of[2] = {0, 0};
  int64_t widest_window = 0;
  size_t page_bytes = 0;

  KVLayout() = default;
  KVLayout(int64_t kv_heads, int64_t head_dim, PageStore store, std::vector<int64_t> windows);
};

// One page of every layer, by group (null: the group has no layers). Sequences that begin alike share it.
struct Block {
  std::shared_ptr<Buffer> pages[2];
};

class Sequence {
 public:
  explicit Sequence(std::shared_ptr<const KVLayout> layout) : layout_(std::move(layout)), pages_(layout_->window.size()) {}

  int64_t length() const { return length_; }
  size_t bytes() const;
  // Room for `n` more tokens; changes nothing but room when it throws std::bad_alloc. A shared page that will be
  // written to becomes the sequence's own.
  void reserve(int64_t n);
  void advance(int64_t n) { length_ += n; }
  // Forget tokens from `length` on. False if that reaches back before what `trim` kept.
  bool truncate(int64_t length);
  // Free the pages of windowed layers that no later token sees.
  void trim();
  // Full page `index`. False when `trim` let go of it, or it is not full.
  bool share(int64_t index, Block* block) const;
  // An empty sequence takes these pages as its first tokens. False when it is not empty.
  bool adopt(const std::vector<Block>& blocks);

  const void* const* pages(int64_t layer) const { return pages_[size_t(layer)].data(); }
  // Page and slot for position `at` of a layer.
  void* page_at(int64_t layer, int64_t at) const {
    return const_cast<void*>(pages_[size_t(layer)][size_t(at / kPageTokens)]);
  }
  const KVLayout& layout() const { return *layout_; }

 private:
  void link(int64_t block);

  std::shared_ptr<const KVLayout> layout_;
  std::vector<std::shared_ptr<Buffer>> blocks_[2];
  std::vector<std::vector<const void*>> pages_;  // per layer
  int64_t length_ = 0, trimmed_ = 0;             // tokens below `trimmed_` are gone from windowed layers
};

}  // namespace headway
