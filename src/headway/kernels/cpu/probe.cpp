// Micro-benchmarks of this machine: read rate, latency, arithmetic rates, the cost of a barrier and of a crossing.
//
// Everything is taken as many bursts of some microseconds per thread. The caller takes the median, so bursts that
// another process interrupted fall out. Bursts count only while every thread of the measurement is at work.
#include "probe.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "bindings.h"

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#endif

namespace headway::probe {
namespace {

using Clock = std::chrono::steady_clock;
using Samples = std::vector<std::vector<double>>;  // [thread][burst]

constexpr size_t kLine = 64;
constexpr size_t kReadStep = 1024;  // Table::read takes whole steps
constexpr size_t kHugePage = size_t{1} << 21;

double seconds(Clock::duration span) { return std::chrono::duration<double>(span).count(); }

bool supports(const std::string& feature) {
#ifdef HEADWAY_X86
  if (feature.empty()) return true;
  if (feature == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (feature == "avx512vnni")
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (feature == "avx512vbmi") return __builtin_cpu_supports("avx512vbmi");
  if (feature == "avx512bf16") return __builtin_cpu_supports("avx512bf16");
#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
  if (feature == "avxvnni") return __builtin_cpu_supports("avxvnni");
#endif
  return false;
#else
  return feature.empty();
#endif
}

// Tables this CPU can run, the widest last.
std::vector<const Table*> tables() {
  std::vector<const Table*> found = {&portable_table()};
#ifdef HEADWAY_X86
  for (const Table* table : {&avx2_table(), &avx512_table()})
    if (supports(table->needs)) found.push_back(table);
#endif
  return found;
}

const Unit& find_unit(const std::string& name) {
  for (const Table* table : tables())
    for (size_t i = 0; i < table->count; ++i)
      if (name == table->units[i].name && supports(table->units[i].needs)) return table->units[i];
  throw nanobind::value_error(("this CPU has no unit " + name).c_str());
}

// Cache-line aligned memory in huge pages where the system gives them, written once so that every page is real.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_((bytes + kHugePage - 1) / kHugePage * kHugePage) {
    data_ = static_cast<char*>(std::aligned_alloc(kHugePage, bytes_));
    if (data_ == nullptr) throw std::bad_alloc();
#ifdef __linux__
    madvise(data_, bytes_, MADV_HUGEPAGE);
#endif
    for (size_t i = 0; i < bytes_; i += sizeof(uint64_t))
      *reinterpret_cast<uint64_t*>(data_ + i) = i * 0x9E3779B97F4A7C15u;
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  char* data() { return data_; }

 private:
  size_t bytes_;
  char* data_;
};

void pin(int cpu) {
#ifdef __linux__
  if (cpu < 0 || cpu >= CPU_SETSIZE) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof(set), &set);  // refused: the measurement goes on unpinned
#else
  (void)cpu;
#endif
}

struct Burst {
  Clock::time_point begin, end;
};

// Runs `make(index)` on each CPU of `cpus`, one thread each; it returns a function whose one call is one burst.
// Gives each burst's `amount / seconds`, per thread.
template <class Make>
Samples in_bursts(const std::vector<int>& cpus, double total_s, double amount, const Make& make) {
  const size_t threads = cpus.size();
  std::vector<std::vector<Burst>> bursts(threads);
  std::atomic<size_t> ready{0};
  std::atomic<bool> failed{false};
  auto work = [&](size_t index) {
    try {
      pin(cpus[index]);
      auto burst = make(index);
      burst();
      bursts[index].reserve(4096);
      ready.fetch_add(1);
      while (ready.load() < threads) {
        if (failed.load()) return;
        std::this_thread::yield();
      }
      const auto deadline = Clock::now() + std::chrono::duration<double>(total_s);
      do {
        const auto begin = Clock::now();
        burst();
        bursts[index].push_back({begin, Clock::now()});
      } while (bursts[index].back().end < deadline || bursts[index].size() < 3);
    } catch (...) {
      failed.store(true);
    }
  };
  std::vector<std::thread> crew;
  for (size_t index = 0; index < threads; ++index) crew.emplace_back(work, index);
  for (auto& thread : crew) thread.join();
  if (failed.load()) throw std::bad_alloc();

  auto from = bursts[0].front().begin;
  auto to = bursts[0].back().end;
  for (const auto& list : bursts) {
    from = std::max(from, list.front().begin);
    to = std::min(to, list.back().end);
  }
  Samples samples(threads);
  for (size_t index = 0; index < threads; ++index) {
    for (const auto& burst : bursts[index])
      if (burst.begin >= from && burst.end <= to) samples[index].push_back(amount / seconds(burst.end - burst.begin));
    if (samples[index].empty())  // never together with the others: its own bursts are all there is
      for (const auto& burst : bursts[index]) samples[index].push_back(amount / seconds(burst.end - burst.begin));
  }
  return samples;
}

void check(const std::vector<int>& cpus, double total_s) {
  if (cpus.empty() || cpus.size() > 1024) throw nanobind::value_error("cpus: between 1 and 1024 are expected");
  if (!(total_s > 0 && total_s <= 60)) throw nanobind::value_error("total_s: more than 0 and at most 60 is expected");
}

std::vector<std::tuple<std::string, std::string, std::string>> units() {
  std::vector<std::tuple<std::string, std::string, std::string>> found;
  for (const Table* table : tables())
    for (size_t i = 0; i < table->count; ++i)
      if (supports(table->units[i].needs))
        found.emplace_back(table->units[i].name, table->units[i].dtype, table->isa);
  return found;
}

Samples compute(const std::string& name, const std::vector<int>& cpus, double burst_s, double total_s) {
  check(cpus, total_s);
  const Unit& unit = find_unit(name);
  int64_t rounds = 64;
  for (;; rounds *= 2) {
    const auto begin = Clock::now();
    unit.run(rounds);
    if (seconds(Clock::now() - begin) >= burst_s || rounds > (int64_t{1} << 40)) break;
  }
  return in_bursts(cpus, total_s, unit.ops_per_round * static_cast<double>(rounds),
                   [&](size_t) { return [&unit, rounds] { unit.run(rounds); }; });
}

// Each thread walks its own `bytes` again and again, `burst_bytes` a burst.
Samples read(size_t bytes, size_t burst_bytes, const std::vector<int>& cpus, double total_s) {
  check(cpus, total_s);
  bytes = bytes / kReadStep * kReadStep;
  burst_bytes = burst_bytes / kReadStep * kReadStep;
  if (bytes == 0 || burst_bytes == 0) throw nanobind::value_error("bytes, burst_bytes: at least 1024 are expected");
  const Table& table = *tables().back();
  return in_bursts(cpus, total_s, static_cast<double>(burst_bytes), [&](size_t) {
    auto buffer = std::make_shared<Buffer>(bytes);
    table.read(buffer->data(), bytes);
    return [&table, buffer, bytes, burst_bytes, at = size_t{0}, sink = uint64_t{0}]() mutable {
      for (size_t left = burst_bytes; left > 0;) {
        const size_t part = std::min(left, bytes - at);
        sink ^= table.read(buffer->data() + at, part);
        at = at + part == bytes ? 0 : at + part;
        left -= part;
      }
      asm volatile("" : : "r"(sink));
    };
  });
}

// Reads `bytes` on each of `cpus` at once, so that whatever the caches held before comes from memory next time.
class Sweeper {
 public:
  Sweeper(size_t bytes, std::vector<int> cpus) : bytes_(bytes / kReadStep * kReadStep), cpus_(std::move(cpus)) {
    check(cpus_, 1);
    if (bytes_ == 0) throw nanobind::value_error("bytes: at least 1024 are expected");
    for (size_t i = 0; i < cpus_.size(); ++i) buffers_.push_back(std::make_unique<Buffer>(bytes_));
  }
  Sweeper(const Sweeper&) = delete;
  Sweeper& operator=(const Sweeper&) = delete;

  void sweep() {
    const Table& table = *tables().back();
    std::vector<std::thread> crew;
    for (size_t i = 0; i < cpus_.size(); ++i)
      crew.emplace_back([this, i, &table] {
        pin(cpus_[i]);
        const uint64_t sink = table.read(buffers_[i]->data(), bytes_);
        asm volatile("" : : "r"(sink));
      });
    for (auto& thread : crew) thread.join();
  }

 private:
  size_t bytes_;
  std::vector<int> cpus_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

// Seconds per dependent load: a random cycle through every cache line of `bytes` (Sattolo's algorithm).
std::vector<double> chase(size_t bytes, int cpu, double total_s) {
  check({cpu}, total_s);
  const size_t lines = bytes / kLine;
  if (lines < 2 || lines > (size_t{1} << 32)) throw nanobind::value_error("bytes: 128 to 256 GiB are expected");
  constexpr int64_t kLoads = 2048;
  Samples rates = in_bursts({cpu}, total_s, static_cast<double>(kLoads), [&](size_t) {
    auto buffer = std::make_shared<Buffer>(bytes);
    char* base = buffer->data();
    std::vector<uint32_t> order(lines);
    for (size_t i = 0; i < lines; ++i) order[i] = static_cast<uint32_t>(i);
    uint64_t state = 0x9E3779B97F4A7C15u;
    for (size_t i = lines - 1; i > 0; --i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      std::swap(order[i], order[(state >> 33) % i]);
    }
    for (size_t i = 0; i < lines; ++i)
      *reinterpret_cast<void**>(base + i * kLine) = base + size_t{order[i]} * kLine;
    void* at = base;
    for (size_t i = 0; i < std::min<size_t>(lines, size_t{1} << 17); ++i) at = *static_cast<void**>(at);
    return [buffer, at]() mutable {
      for (int64_t i = 0; i < kLoads; ++i) at = *static_cast<void* volatile*>(at);
      asm volatile("" : : "r"(at));
    };
  });
  for (double& rate : rates[0]) rate = 1 / rate;
  return rates[0];
}

// Seconds per barrier of spinning threads, one per CPU: the floor of a phase of a native step.
std::vector<double> barrier(const std::vector<int>& cpus, double total_s) {
  check(cpus, total_s);
  constexpr int kBarriers = 64;
  const int threads = static_cast<int>(cpus.size());
  std::atomic<int> arrived{0}, phase{0};
  std::atomic<bool> stop{false};
  auto wait = [&] {
    const int now = phase.load(std::memory_order_acquire);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
      arrived.store(0, std::memory_order_relaxed);
      phase.store(now + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase.load(std::memory_order_acquire) == now; ++spins) {
      if (spins > 20000) std::this_thread::yield();  // the partner lost its core
#ifdef HEADWAY_X86
      __builtin_ia32_pause();
#endif
    }
  };
  std::vector<double> samples;
  samples.reserve(4096);
  auto work = [&](int index) {
    pin(cpus[index]);
    const auto deadline = Clock::now() + std::chrono::duration<double>(total_s);
    for (;;) {
      const auto begin = Clock::now();
      for (int i = 0; i < kBarriers; ++i) wait();
      const auto end = Clock::now();
      if (index == 0) {
        samples.push_back(seconds(end - begin) / kBarriers);
        if (end >= deadline && samples.size() >= 3) stop.store(true);
      }
      wait();  // everyone reads the same `stop`
      if (stop.load()) return;
    }
  };
  std::vector<std::thread> crew;
  for (int index = 0; index < threads; ++index) crew.emplace_back(work, index);
  for (auto& thread : crew) thread.join();
  return samples;
}

// Adds the submodule `probe`. The GIL is released while anything is measured.
void bind(nanobind::module_& parent) {
  namespace nb = nanobind;
  using namespace nb::literals;
  using release = nb::call_guard<nb::gil_scoped_release>;
  auto m = parent.def_submodule("probe", "Micro-benchmarks of this machine.");
  m.def("units", &units, "(unit, dtype, isa) of every arithmetic unit this CPU can run.");
  m.def("compute", &compute, "unit"_a, "cpus"_a, "burst_s"_a, "total_s"_a, release(),
        "Operations per second of each burst, per thread.");
  m.def("read", &read, "bytes"_a, "burst_bytes"_a, "cpus"_a, "total_s"_a, release(),
        "Bytes per second of each burst; every thread reads its own `bytes`.");
  m.def("chase", &chase, "bytes"_a, "cpu"_a, "total_s"_a, release(),
        "Seconds per dependent load over a random cycle through `bytes`, per burst.");
  m.def("barrier", &barrier, "cpus"_a, "total_s"_a, release(),
        "Seconds per barrier of spinning threads, per burst.");
  nb::class_<Sweeper>(m, "Sweeper", "Memory to read so that the caches forget what they held.")
      .def(nb::init<size_t, std::vector<int>>(), "bytes"_a, "cpus"_a, release())
      .def("sweep", &Sweeper::sweep, release(), "Read it all, on each CPU its own part.");
  m.def("nothing", [] {}, "Does nothing: its cost is that of a crossing.");
}

const Binding binding(bind);

}  // namespace
}  // namespace headway::probe
