#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if HEADWAY_X86
#include <immintrin.h>
#endif

namespace headway {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxThreads = 256;
constexpr int64_t kSpinInside = 200'000, kSpinOutside = 20'000;  // ns a helper spins within and between sessions
constexpr int64_t kStall = 200'000;  // ns a caller waits before it asks whether helpers still have their cores
constexpr int64_t kLook = 50'000;    // ns in which a helper that has its core must have run
constexpr int64_t kFirstRest = 2'000'000, kLongestRest = 512'000'000;  // ns alone after a stall
constexpr int64_t kWorth = 4;  // helpers that worked this many times as long as they were then waited for are worth it

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

inline void relax() {
#if HEADWAY_X86
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

void futex_wait(std::atomic<uint32_t>& word, uint32_t value, const timespec* limit = nullptr) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, limit, nullptr, 0);
}
void futex_wake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  if (cpus.empty()) cpus.push_back(0);
  return cpus;
}

}  // namespace

// One share of the phase in progress. `next` counts tasks handed out. A claim that succeeds always belongs to the phase
// in progress, which cannot end before its `done`; a helper that is late from a phase with more lanes makes none.
struct alignas(64) Share {
  std::atomic<uint64_t> claim{0};  // lanes - 1 << 56 | end << 28 | next
};
constexpr int64_t kMostTasks = (1 << 28) - 1;

struct alignas(64) Helper {
  std::atomic<uint64_t> done{0};      // tasks finished since the start, by this helper
  std::atomic<bool> busy{false};      // inside a task
  alignas(64) std::atomic<uint32_t> state{0};  // futex: 0 awake, 1 parked
  pthread_t thread{};
  int cpu = -1;
};

struct Pool::State {
  std::mutex use;  // held by a session that owns the helpers
  std::atomic<int> wanted{1};
  std::vector<int> cpus = allowed_cpus();
  int team = -1;  // 0, 1: see Pool::team

  explicit State(int which) : team(which) {}

  Share shares[kMaxThreads];
  Helper helpers[kMaxThreads];  // helpers[0] stands for the caller
  std::atomic<int> started{1};  // threads that exist, the caller included

  alignas(64) std::atomic<uint32_t> epoch{0};    // counts phases and session starts
  alignas(64) std::atomic<bool> inside{false};  // a session is open
  alignas(64) std::atomic<int> shares_in_use{1};
  std::atomic<uint32_t> awaited{0};  // futex: 1 while the caller sleeps until a task is done
  int64_t offset[kMaxThreads] = {};  // first task of each share
  Session::Function function = nullptr;
  void* context = nullptr;

  uint64_t finished = 0;  // tasks of all phases shared so far
  int64_t rest_until = 0, rest = kFirstRest;
  int64_t opened = 0, shared = 0;  // when the session in progress (or its sharing) began; ns of earlier ones since a rest
  std::atomic<uint64_t> phases{0}, stalls{0}, alone{0};

  // Take tasks until none is left. True if the caller slept until one of them was done.
  bool work(int lane) {
    bool woke = false;
    const int count = shares_in_use.load(std::memory_order_acquire);
    for (int k = 0; k < count; ++k) {
      const int at = (lane + k) % count;
      Share& share = shares[at];
      for (;;) {
        uint64_t seen = share.claim.load(std::memory_order_acquire);
        const int64_t task = int64_t(seen) & kMostTasks, end = int64_t(seen >> 28) & kMostTasks;
        if (task >= end || uint64_t(lane) > seen >> 56) break;
        if (!share.claim.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
        Helper& self = helpers[lane];
        self.busy.store(true, std::memory_order_relaxed);
        function(context, offset[at] + task, lane);
        self.busy.store(false, std::memory_order_relaxed);
        self.done.store(self.done.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);
        if (lane && awaited.load(std::memory_order_seq_cst)) {
          awaited.store(0, std::memory_order_relaxed);
          futex_wake(awaited);
          woke = true;
        }
      }
    }
    return woke;
  }

  void help(int lane) {
    uint32_t seen = epoch.load(std::memory_order_acquire);
    int64_t since = now_ns();
    for (int turn = 0;; ++turn) {
      const uint32_t current = epoch.load(std::memory_order_acquire);
      if (current != seen) {
        seen = current;
        if (lane < shares_in_use.load(std::memory_order_acquire)) {
          const bool woke = work(lane);
          turn = 0;
          since = woke ? 0 : now_ns();  // a woken caller wants this core
          continue;
        }
      }
      relax();
      if ((turn & 63) != 63) continue;
      if (now_ns() - since < (inside.load(std::memory_order_relaxed) ? kSpinInside : kSpinOutside)) continue;
      Helper& self = helpers[lane];
      self.state.store(1, std::memory_order_seq_cst);
      if (epoch.load(std::memory_order_seq_cst) == seen) futex_wait(self.state, 1);
      self.state.store(0, std::memory_order_relaxed);
      since = now_ns();
    }
  }

  void wake(int count) {
    for (int lane = 1; lane < count; ++lane)
      if (helpers[lane].state.load(std::memory_order_seq_cst) == 1) {
        helpers[lane].state.store(0, std::memory_order_relaxed);
        futex_wake(helpers[lane].state);
      }
  }

  void start(int count) {
    for (int lane = started.load(); lane < count; ++lane) {
      struct Start {
        State* state;
        int lane;
      };
      auto* argument = new Start{this, lane};
      const auto body = [](void* raw) -> void* {
        const std::unique_ptr<Start> start(static_cast<Start*>(raw));
        start->state->help(start->lane);
        return nullptr;
      };
      if (pthread_create(&helpers[lane].thread, nullptr, body, argument) != 0) {
        delete argument;
        return;  // fewer threads than wished for: slower, not wrong
      }
      pthread_detach(helpers[lane].thread);
      if (team < 0) place(lane, cpus[size_t(lane) % cpus.size()]);
      started.store(lane + 1);
    }
  }

  void place(int lane, int cpu) {
    if (cpus.size() < 2 || helpers[lane].cpu == cpu) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    pthread_setaffinity_np(helpers[lane].thread, sizeof set, &set);
    helpers[lane].cpu = cpu;
  }

  // A team's caller and helpers to its own cores; where the caller might run before, for the caller to go back.
  cpu_set_t* pin(int count) {
    const auto core = [&](int lane) {
      return cpus[size_t(team == 0 ? lane : std::max(count, int(cpus.size())) - 1 - lane) % cpus.size()];
    };
    for (int lane = 1; lane < std::min(count, started.load()); ++lane) place(lane, core(lane));
    auto home = std::make_unique<cpu_set_t>();
    if (pthread_getaffinity_np(pthread_self(), sizeof *home, home.get()) != 0) return nullptr;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core(0), &set);
    return pthread_setaffinity_np(pthread_self(), sizeof set, &set) == 0 ? home.release() : nullptr;
  }

  int64_t ran_ns(int lane) const {
    clockid_t clock;
    timespec time{};
    if (pthread_getcpuclockid(helpers[lane].thread, &clock) == 0) clock_gettime(clock, &time);
    return int64_t(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
  }

  // Helpers that lost their cores inside a task are given the caller's, which sleeps until all is done: they would
  // wait for whole time slices of others. False if those that work still have their cores.
  template <class Done> bool fetch_lost(int count, Done all_done) {
    int64_t ran[kMaxThreads];
    for (int lane = 1; lane < count; ++lane)
      ran[lane] = helpers[lane].busy.load(std::memory_order_relaxed) ? ran_ns(lane) : -1;
    for (const int64_t begin = now_ns(); now_ns() - begin < kLook;) {
      if (all_done()) return false;
      relax();
    }
    const int mine = sched_getcpu();
    bool lost = false;
    int home[kMaxThreads];
    for (int lane = 1; lane < count; ++lane) {
      home[lane] = helpers[lane].cpu;
      if (ran[lane] < 0 || !helpers[lane].busy.load(std::memory_order_relaxed)) continue;
      if (ran_ns(lane) - ran[lane] > kLook / 4) continue;
      place(lane, mine);
      lost = true;
    }
    if (!lost) return false;
    const timespec limit{0, 1'000'000};
    while (!all_done()) {
      awaited.store(1, std::memory_order_seq_cst);
      if (all_done()) break;
      futex_wait(awaited, 1, &limit);
    }
    awaited.store(0, std::memory_order_relaxed);
    for (int lane = 1; lane < count; ++lane) place(lane, home[lane]);
    return true;
  }

  // Keep helpers off the core the caller runs on.
  void spread(int count) {
    const int mine = sched_getcpu();
    const size_t n = cpus.size();
    size_t base = 0;
    while (base < n && cpus[base] != mine) ++base;
    if (base == n) return;
    for (int lane = 1; lane < count; ++lane) place(lane, cpus[(base + size_t(lane)) % n]);
  }
};

Pool::Pool(int team) : state_(new State(team)) {
  state_->wanted.store(std::min(int(state_->cpus.size()), kMaxThreads));
}

// The process's pool and the two teams; never destroyed: their threads outlive static destructors.
Pool* Pool::all() {
  static Pool* const pools = [] {
    static auto* made = new Pool[3]{Pool(-1), Pool(0), Pool(1)};
    // After a fork the helpers are gone: the child starts its own.
    pthread_atfork(nullptr, nullptr, [] {
      for (int i = 0; i < 3; ++i) {
        const int wanted = made[i].state_->wanted.load();
        made[i].state_ = new State(i - 1);
        made[i].state_->wanted.store(wanted);
      }
    });
    return made;
  }();
  return pools;
}

Pool& Pool::instance() { return all()[0]; }

Pool& Pool::team(int which) { return all()[1 + which]; }

int Pool::threads() const { return state_->wanted.load(); }

void Pool::set_threads(int n) {
  state_->wanted.store(n > 0 ? std::min(n, kMaxThreads) : std::min(int(state_->cpus.size()), kMaxThreads));
}

Pool::Counts Pool::counts() const {
  return {state_->phases.load(), state_->stalls.load(), state_->alone.load()};
}

Pool::Session::Session(Pool& pool, int threads) : pool_(pool) {
  State& s = *pool.state_;
  const int wanted = threads > 0 ? std::min(threads, kMaxThreads) : s.wanted.load();
  if (wanted < 2 || !s.use.try_lock()) return;
  owner_ = true;
  if (s.started.load() < wanted) s.start(wanted);
  lanes_ = opened_ = std::min(wanted, s.started.load());
  if (s.team >= 0 && s.cpus.size() > 1) home_ = s.pin(wanted);
  if (lanes_ > 1) {
    if (s.team < 0) s.spread(lanes_);
    s.opened = now_ns();
    s.inside.store(true, std::memory_order_seq_cst);
    s.epoch.fetch_add(1, std::memory_order_seq_cst);
    s.wake(lanes_);
  }
}

Pool::Session::~Session() {
  if (!owner_) return;
  State& s = *pool_.state_;
  if (opened_ > 1 && !s.rest_until) s.shared += now_ns() - s.opened;
  s.inside.store(false, std::memory_order_relaxed);
  if (home_) {
    const std::unique_ptr<cpu_set_t> home(static_cast<cpu_set_t*>(home_));
    pthread_setaffinity_np(pthread_self(), sizeof *home, home.get());
  }
  s.use.unlock();
}

void Pool::Session::run_raw(int64_t tasks, Function function, void* context) {
  const auto by_itself = [&] {
    for (int64_t task = 0; task < tasks; ++task) function(context, task, 0);
  };
  if (!owner_ || lanes_ < 2 || tasks < 2 || tasks > kMostTasks) return by_itself();
  State& s = *pool_.state_;
  if (s.rest_until) {
    const int64_t now = now_ns();
    if (now < s.rest_until) {
      s.alone.fetch_add(1, std::memory_order_relaxed);
      return by_itself();
    }
    s.rest_until = 0;
    s.shared = 0;
    s.opened = now;
  }
  s.function = function;
  s.context = context;
  for (int lane = 0; lane < lanes_; ++lane) {
    const int64_t begin = tasks * lane / lanes_, end = tasks * (lane + 1) / lanes_;
    s.offset[lane] = begin;
    s.shares[lane].claim.store(uint64_t(lanes_ - 1) << 56 | uint64_t(end - begin) << 28, std::memory_order_release);
  }
  s.shares_in_use.store(lanes_, std::memory_order_release);
  s.epoch.fetch_add(1, std::memory_order_seq_cst);
  s.wake(lanes_);
  s.phases.fetch_add(1, std::memory_order_relaxed);
  s.work(0);

  s.finished += uint64_t(tasks);
  const auto all_done = [&] {
    uint64_t done = 0;
    for (int lane = 0; lane < s.started.load(std::memory_order_relaxed); ++lane)
      done += s.helpers[lane].done.load(std::memory_order_acquire);
    return done == s.finished;
  };
  bool stalled = false;
  int64_t from = 0;
  for (int turn = 1; !all_done(); ++turn) {
    relax();
    if (turn & 63) continue;
    const int64_t now = now_ns();
    if (!from) from = now;
    if (now - from < kStall) continue;
    stalled |= s.fetch_lost(lanes_, all_done);
  }
  if (!stalled) return;
  s.stalls.fetch_add(1, std::memory_order_relaxed);
  const int64_t now = now_ns();
  const bool worth = s.shared + (from - s.opened) > kWorth * (now - from);
  s.rest = worth ? std::max(s.rest / 2, kFirstRest) : std::min(s.rest * 2, kLongestRest);
  s.rest_until = now + s.rest;
}

}  // namespace headway
