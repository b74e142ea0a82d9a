// Slabs of huge pages with first-fit free lists. Blocks are whole 4 KiB pages, so that neighbours never share a
// cache line or a page; freeing the last block of a slab returns it to the system.
#include "arena.h"

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace headway {
namespace {

constexpr size_t kPage = 4096, kHuge = size_t(2) << 20, kSlab = size_t(32) << 20, kSlack = 64;

size_t up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

struct Slab {
  char* base = nullptr;
  size_t size = 0;
  std::map<size_t, size_t> free;  // offset -> length; neighbours are always merged
};

class Arena {
 public:
  void* take(size_t bytes, Owner owner, size_t& taken) {
    const std::lock_guard lock(mutex_);
    if (fail_at_ > 0 && --fail_at_ == 0) throw std::bad_alloc();
    if (bytes > (size_t(1) << 46)) throw std::bad_alloc();
    taken = up(bytes + kSlack, kPage);
    reserve_node();
    char* block = nullptr;
    for (auto& slab : slabs_)
      if ((block = fit(*slab, taken))) break;
    if (!block) block = fit(map(taken), taken);
    ++live_;
    count(owner, taken, true);
    return block;
  }

  void give(void* data, size_t taken, Owner owner) {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < slabs_.size(); ++i) {
      Slab& slab = *slabs_[i];
      char* at = static_cast<char*>(data);
      if (at < slab.base || at >= slab.base + slab.size) continue;
      release(slab, size_t(at - slab.base), taken);
      --live_;
      if (slab.free.size() == 1 && slab.free.begin()->second == slab.size) {
        munmap(slab.base, slab.size);
        slabs_.erase(slabs_.begin() + long(i));
      }
      break;
    }
    count(owner, taken, false);
  }

  MemoryUse use(int owner) {
    const std::lock_guard lock(mutex_);
    return owner < kOwners ? use_[owner] : total_;
  }

  void reset() {
    const std::lock_guard lock(mutex_);
    for (auto& use : use_) use.peak = use.current;
    total_.peak = total_.current;
  }

  void fail(int64_t k) {
    const std::lock_guard lock(mutex_);
    fail_at_ = k;
  }

 private:
  // Giving a block back must not fail: for every block there is a node of a free list put by, made with the block.
  void reserve_node() {
    spare_.reserve(live_ + 1);
    while (spare_.size() <= live_) {
      std::map<size_t, size_t> one{{0, 0}};
      spare_.push_back(one.extract(one.begin()));
    }
  }

  char* fit(Slab& slab, size_t bytes) {
    for (auto it = slab.free.begin(); it != slab.free.end(); ++it) {
      if (it->second < bytes) continue;
      const size_t offset = it->first, rest = it->second - bytes;
      if (rest) {
        auto node = slab.free.extract(it);  // no allocation: cannot fail halfway
        node.key() = offset + bytes;
        node.mapped() = rest;
        slab.free.insert(std::move(node));
      } else {
        slab.free.erase(it);
      }
      return slab.base + offset;
    }
    return nullptr;
  }

  // A slab with room for `bytes` and for what comes after; where address space is short, for `bytes` alone.
  Slab& map(size_t bytes) {
    auto slab = std::make_unique<Slab>();
    const auto whole = slab->free.emplace(0, 0).first;
    slabs_.reserve(slabs_.size() + 1);
    if (!reserve(*slab, bytes > kSlab / 2 ? up(bytes, kHuge) : kSlab, kHuge)) {
      trim();
      if (!reserve(*slab, bytes, 0)) throw std::bad_alloc();
    }
    whole->second = slab->size;
    slabs_.push_back(std::move(slab));
    return *slabs_.back();
  }

  // Give back the ends of slabs that hold nothing.
  void trim() {
    for (const auto& slab : slabs_) {
      if (slab->free.empty()) continue;
      const auto last = std::prev(slab->free.end());
      if (last->first + last->second != slab->size) continue;
      munmap(slab->base + last->first, last->second);
      slab->size = last->first;
      slab->free.erase(last);
    }
  }

  // `spare` bytes more are asked for and given back, so that the slab begins at a multiple of kHuge; 0: anywhere.
  static bool reserve(Slab& slab, size_t size, size_t spare) {
    void* raw = mmap(nullptr, size + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return false;
    char* from = static_cast<char*>(raw);
    slab.size = size;
    slab.base = spare ? reinterpret_cast<char*>(up(reinterpret_cast<size_t>(from), kHuge)) : from;
    const size_t head = size_t(slab.base - from);
    if (head) munmap(from, head);
    if (spare > head) munmap(slab.base + size, spare - head);
    madvise(slab.base, size, MADV_HUGEPAGE);
    return true;
  }

  void release(Slab& slab, size_t offset, size_t bytes) {
    auto next = slab.free.lower_bound(offset);
    if (next != slab.free.end() && next->first == offset + bytes) {
      bytes += next->second;
      next = slab.free.erase(next);
    }
    if (next != slab.free.begin()) {
      auto before = std::prev(next);
      if (before->first + before->second == offset) {
        before->second += bytes;
        return;
      }
    }
    auto node = std::move(spare_.back());
    spare_.pop_back();
    node.key() = offset;
    node.mapped() = bytes;
    slab.free.insert(next, std::move(node));
  }

  void count(Owner owner, size_t bytes, bool taken) {
    for (MemoryUse* use : {&use_[int(owner)], &total_}) {
      use->current = taken ? use->current + bytes : use->current - bytes;
      if (use->current > use->peak) use->peak = use->current;
    }
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Slab>> slabs_;
  MemoryUse use_[kOwners], total_;
  int64_t fail_at_ = 0;
  std::vector<std::map<size_t, size_t>::node_type> spare_;
  size_t live_ = 0;  // blocks in use
};

Arena& arena() {
  static Arena* const one = new Arena;  // never destroyed: buffers may outlive static destructors
  return *one;
}

}  // namespace

MemoryUse memory_use(Owner owner) { return arena().use(int(owner)); }
MemoryUse memory_total() { return arena().use(kOwners); }
void reset_peaks() { arena().reset(); }
void fail_allocation(int64_t k) { arena().fail(k); }

Buffer::Buffer(size_t bytes, Owner owner) : owner_(owner) {
  data_ = arena().take(bytes, owner, taken_);
  size_ = bytes;
  std::memset(data_, 0, taken_);
}

Buffer::~Buffer() {
  if (data_) arena().give(data_, taken_, owner_);
}

}  // namespace headway
