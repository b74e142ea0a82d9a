// Rounds of sessions and phases on the thread pool and on its two teams, for ThreadSanitizer: `pool_storm ROUNDS`.
// Tasks write their own cells without atomics; the caller reads all of them after each phase, so a phase that ends
// too early or a helper that comes too late is a race and a wrong sum.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "pool.h"

using headway::Pool;

namespace {

int64_t wrong = 0;

// One caller's rounds: sessions of a few phases, then a pause within or beyond the helpers' spinning.
int64_t storm(Pool& pool, int64_t rounds, uint64_t seed) {
  int64_t bad = 0;
  std::vector<int64_t> cells(64);
  for (int64_t round = 0; round < rounds;) {
    Pool::Session session(pool, 2);
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    const int phases = 1 + int(seed >> 60);
    for (int phase = 0; phase < phases && round < rounds; ++phase, ++round) {
      const int64_t tasks = 1 + int64_t(seed >> 33) % int64_t(cells.size());
      if ((seed >> 20) % 16 == 0) session.use(1 + int(seed >> 12) % 2);
      session.run(tasks, [&](int64_t task, int) { cells[size_t(task)] = round + task; });
      int64_t sum = 0;
      for (int64_t at = 0; at < tasks; ++at) sum += cells[size_t(at)];
      bad += sum != tasks * round + tasks * (tasks - 1) / 2;
    }
    if ((seed >> 40) % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds((seed >> 50) % 400));
  }
  return bad;
}

}  // namespace

int main(int count, char** words) {
  const int64_t rounds = count > 1 ? std::atoll(words[1]) : 10000;
  Pool::instance().set_threads(2);
  wrong += storm(Pool::instance(), rounds / 2, 1);
  // Two callers want the one pool, then each has a team of its own.
  int64_t bad[2] = {0, 0};
  auto both = [&](Pool& first, Pool& second, int64_t each) {
    std::thread other([&] { bad[1] += storm(second, each, 3); });
    bad[0] += storm(first, each, 2);
    other.join();
  };
  both(Pool::instance(), Pool::instance(), rounds / 8);
  both(Pool::team(0), Pool::team(1), rounds / 8);
  wrong += bad[0] + bad[1];
  const auto counts = Pool::instance().counts();
  std::printf("{\"rounds\": %lld, \"wrong\": %lld, \"shared\": %llu, \"stalls\": %llu, \"alone\": %llu}\n",
              (long long)rounds, (long long)wrong, (unsigned long long)counts.phases,
              (unsigned long long)counts.stalls, (unsigned long long)counts.alone);
  return wrong != 0;
}
