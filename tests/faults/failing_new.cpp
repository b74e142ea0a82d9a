// Preloaded: the k-th `new` that code in [begin, end) asks for fails. Everything else allocates as ever.
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>

namespace {
uintptr_t begin = 0, end = 0;
long countdown = 0;
std::mutex lock;

void pass(const void* caller) {
  const auto from = reinterpret_cast<uintptr_t>(caller);
  if (from < begin || from >= end) return;
  const std::lock_guard hold(lock);
  if (countdown > 0 && --countdown == 0) throw std::bad_alloc();
}

void* take(void* p) {
  if (!p) throw std::bad_alloc();
  return p;
}
}  // namespace

extern "C" void failing_new_watch(uintptr_t from, uintptr_t to) { begin = from, end = to; }
extern "C" void failing_new(long k) {
  const std::lock_guard hold(lock);
  countdown = k;
}

void* operator new(size_t n) {
  pass(__builtin_return_address(0));
  return take(std::malloc(n ? n : 1));
}
void* operator new[](size_t n) {
  pass(__builtin_return_address(0));
  return take(std::malloc(n ? n : 1));
}
void* operator new(size_t n, std::align_val_t to) {
  pass(__builtin_return_address(0));
  const auto unit = static_cast<size_t>(to);
  return take(std::aligned_alloc(unit, (n + unit - 1) / unit * unit));
}
