#include "kv.h"

#include <algorithm>
#include <cstring>

namespace headway {

KVLayout::KVLayout(int64_t kv_heads, int64_t head_dim, PageStore store, std::vector<int64_t> windows)
    : window(std::move(windows)) {
  shape = {kv_heads, head_dim, (head_dim + 15) / 16 * 16, store};
  page_bytes = size_t(kv_heads) * page_head_bytes(&shape);
  page_bytes = (page_bytes + 63) / 64 * 64;
  for (const int64_t w : window) {
    const int g = w > 0;
    group.push_back(g);
    index.push_back(int(layers_of[g]++));
    widest_window = std::max(widest_window, w);
  }
}

size_t Sequence::bytes() const {
  size_t total = 0;
  for (const auto& blocks : blocks_)
    for (const auto& block : blocks) total += block ? block->size() : 0;
  return total;
}

void Sequence::reserve(int64_t n) {
  if (length_ % kPageTokens) {
    const int64_t last = length_ / kPageTokens;
    for (auto& blocks : blocks_) {
      if (last >= int64_t(blocks.size()) || !blocks[size_t(last)] || blocks[size_t(last)].use_count() == 1) continue;
      const auto& shared = *blocks[size_t(last)];
      auto own = std::make_shared<Buffer>(shared.size(), Owner::kv);
      std::memcpy(own->data(), shared.data(), shared.size());
      blocks[size_t(last)] = std::move(own);
      link(last);
    }
  }
  const int64_t wanted = (length_ + n + kPageTokens - 1) / kPageTokens;
  for (auto& pages : pages_) pages.resize(std::max(pages.size(), size_t(wanted)), nullptr);
  for (int g = 0; g < 2; ++g) {
    if (!layout_->layers_of[g]) continue;
    while (int64_t(blocks_[g].size()) < wanted) {
      blocks_[g].push_back(std::make_shared<Buffer>(size_t(layout_->layers_of[g]) * layout_->page_bytes, Owner::kv));
      link(int64_t(blocks_[g].size()) - 1);
    }
  }
}

void Sequence::link(int64_t block) {
  for (size_t layer = 0; layer < pages_.size(); ++layer) {
    const auto& blocks = blocks_[layout_->group[layer]];
    if (block >= int64_t(blocks.size())) continue;
    const auto& owner = blocks[size_t(block)];
    pages_[layer][size_t(block)] =
        owner ? owner->as<char>() + size_t(layout_->index[layer]) * layout_->page_bytes : nullptr;
  }
}

bool Sequence::share(int64_t index, Block* block) const {
  if (index < 0 || (index + 1) * kPageTokens > length_) return false;
  for (int g = 0; g < 2; ++g) {
    if (!layout_->layers_of[g]) continue;
    block->pages[g] = blocks_[g][size_t(index)];
    if (!block->pages[g]) return false;
  }
  return true;
}

bool Sequence::adopt(const std::vector<Block>& blocks) {
  if (length_ || trimmed_) return false;
  for (auto& pages : pages_) pages.assign(blocks.size(), nullptr);
  for (int g = 0; g < 2; ++g) {
    blocks_[g].clear();
    if (layout_->layers_of[g])
      for (const Block& block : blocks) blocks_[g].push_back(block.pages[g]);
  }
  for (size_t i = 0; i < blocks.size(); ++i) link(int64_t(i));
  length_ = int64_t(blocks.size()) * kPageTokens;
  return true;
}

bool Sequence::truncate(int64_t length) {
  if (length > length_) return false;
  if (trimmed_ > 0 && length < length_ && length - layout_->widest_window < trimmed_) {
    if (length > 0) return false;
    trimmed_ = 0;
    length_ = 0;
    for (auto& blocks : blocks_) blocks.clear();
    for (auto& pages : pages_) pages.clear();
    return true;
  }
  length_ = length;
  const auto keep = size_t((length + kPageTokens - 1) / kPageTokens);
  for (auto& blocks : blocks_)
    if (blocks.size() > keep) blocks.resize(keep);
  for (auto& pages : pages_)
    if (pages.size() > keep) pages.resize(keep);
  return true;
}

void Sequence::trim() {
  const int64_t gone = (length_ - layout_->widest_window) / kPageTokens;  // the next token sees window - 1 before it
  for (int64_t block = trimmed_ / kPageTokens; block < gone && block < int64_t(blocks_[1].size()); ++block) {
    blocks_[1][size_t(block)].reset();
    link(block);
  }
  if (layout_->layers_of[1] && gone > 0) trimmed_ = std::max(trimmed_, gone * kPageTokens);
}

}  // namespace headway
