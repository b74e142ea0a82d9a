// Native memory by owner: huge-page slabs for everything large and long-lived, and the counters behind every claim.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

namespace headway {

enum class Owner : int { weights = 0, kv = 1, scratch = 2 };
constexpr int kOwners = 3;

struct MemoryUse {
  size_t current = 0, peak = 0;
};

MemoryUse memory_use(Owner owner);
MemoryUse memory_total();  // the peak of the sum, not the sum of peaks
void reset_peaks();
// The k-th allocation from now fails (k >= 1); 0: none does. For fault tests.
void fail_allocation(int64_t k);

// A block of native memory: 64-byte aligned, zeroed, 64 readable bytes beyond its end. Throws std::bad_alloc.
class Buffer {
 public:
  Buffer() = default;
  Buffer(size_t bytes, Owner owner);
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer();

  void* data() const { return data_; }
  template <class T> T* as() const { return static_cast<T*>(data_); }
  size_t size() const { return size_; }
  // At least `bytes`; the content is lost when it has to grow.
  void grow(size_t bytes, Owner owner) {
    if (bytes > size_) *this = Buffer(bytes, owner);
  }

 private:
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(taken_, other.taken_);
    std::swap(owner_, other.owner_);
  }
  void* data_ = nullptr;
  size_t size_ = 0, taken_ = 0;
  Owner owner_ = Owner::scratch;
};

}  // namespace headway
