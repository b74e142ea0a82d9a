// Two lanes that step one model at the same time, each on its share of the cores (semi-PD and Nexus, 2025).
//
//   share r of C cores:  floor(r C) cores of its own, and the one core that both leave over (if any) by turns
//
// The core in between goes from one lane to the other between layers, by weighted fair queueing of the time it is held.
// Half of two cores is a core each, without turns; on one core everything is turns. A lane that has not stepped for a
// while lends its cores: it steps on them at once when it comes back, and has them alone from the other's next layer.
// Setting the share is one store; each lane reads it at its next layer.
#pragma once
#include <array>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "model.h"

namespace headway {

class Partition {
 public:
  explicit Partition(int cores) : cores_(cores) {}
  int cores() const { return cores_; }
  void share(double first) { first_.store(first, std::memory_order_relaxed); }
  void enter(int lane);
  // Cores for the lane's next layer, at least 1; waits for its turn when it owns none.
  int turn(int lane);
  void leave(int lane);

 private:
  struct Lane {
    bool inside = false;
    int64_t left = INT64_MIN / 2;  // when it was inside last
    double used = 0;               // ns it held the core in between, over its weight
  };
  bool there(int lane, int64_t now) const;

  const int cores_;
  std::atomic<double> first_{0.5};
  std::mutex mutex_;
  std::condition_variable passed_;
  std::array<Lane, 2> lanes_;
  int holder_ = -1;     // of the core in between
  int64_t since_ = -1;  // it is held; -1: passed on and not yet taken
};

class Lanes {
 public:
  Lanes(std::shared_ptr<const Model> model, int threads);
  ~Lanes();
  const Model& model() const { return *model_; }
  int cores() const { return partition_.cores(); }
  void share(double first) { partition_.share(first); }
  // As Model::step, on lane 0 or 1; two threads may step the two lanes, with different sequences, at the same time.
  void step(int lane, const std::vector<Part>& parts, float* logits);

 private:
  std::shared_ptr<const Model> model_;
  Partition partition_;
  std::array<std::mutex, 2> busy_;
  std::array<std::unique_ptr<Batch>, 2> batches_;
};

}  // namespace headway
