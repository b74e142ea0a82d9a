// The thread pool: pinned helpers that spin a little, then park; a caller that is never held up by a helper that
// did not come.
//
// A phase is `tasks` independent tasks. Every thread starts in its own contiguous share (one linear stream of
// memory) and takes from the others' shares when done. A helper that is late, or was taken off its core between
// tasks, costs nothing: the caller does its share. Only a helper that loses its core inside a task makes the caller
// wait, and others' time slices are a thousand times longer than a task: after `kStall` the caller gives it its own core
// and sleeps until the task is done. Then the pool goes on with the caller alone and asks the helpers again later: the
// later, the more often waiting for them took longer than their work was worth.
// Which thread runs a task must not change its result.
#pragma once
#include <cstdint>
#include <type_traits>

namespace headway {

class Pool {
 public:
  static Pool& instance();
  // Two teams of their own helpers, for lanes that run at the same time: the caller and its helpers are pinned to the
  // process's cores, the first team's from the first core up, the second's from the last one down.
  static Pool& team(int which);

  // Threads that `run` may use, the caller included; default: the cores this process may run on.
  int threads() const;
  void set_threads(int n);

  // Held while a step runs its phases: helpers are woken once and spin between phases. A second thread that wants
  // the pool meanwhile gets none of the helpers and runs its phases alone. `threads` 0: as set.
  class Session {
   public:
    explicit Session(int threads = 0) : Session(instance(), threads) {}
    Session(Pool& pool, int threads);
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    int lanes() const { return lanes_; }  // lane numbers that tasks may see are below this
    // Threads of the next phases: 1 to as many as it was opened with.
    void use(int threads) { lanes_ = threads < 1 ? 1 : threads < opened_ ? threads : opened_; }

    // f(task, lane) for every task, each once; returns when all are done. `f` must not throw.
    template <class F> void run(int64_t tasks, F&& f) {
      using Plain = std::remove_reference_t<F>;
      run_raw(tasks, [](void* context, int64_t task, int lane) { (*static_cast<Plain*>(context))(task, lane); },
              const_cast<void*>(static_cast<const void*>(&f)));
    }

   private:
    using Function = void (*)(void* context, int64_t task, int lane);
    void run_raw(int64_t tasks, Function function, void* context);
    Pool& pool_;
    int lanes_ = 1, opened_ = 1;
    bool owner_ = false;
    void* home_ = nullptr;  // where the caller of a team may run when it is none
    friend class Pool;
  };

  struct Counts {
    uint64_t phases = 0;   // shared with helpers
    uint64_t stalls = 0;   // waits for helpers that had lost their cores
    uint64_t alone = 0;    // phases run by the caller alone because of an earlier stall
  };
  Counts counts() const;

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

 private:
  explicit Pool(int team);
  static Pool* all();
  struct State;
  State* state_;
};

}  // namespace headway
