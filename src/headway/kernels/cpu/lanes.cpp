#include "lanes.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "batch.h"
#include "feed.h"
#include "pool.h"

namespace headway {
namespace {

constexpr int64_t kLinger = 5'000'000;  // ns after its last step that a lane's cores are kept for it

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

bool Partition::there(int lane, int64_t now) const {
  return lanes_[size_t(lane)].inside || now - lanes_[size_t(lane)].left < kLinger;
}

void Partition::enter(int lane) {
  const std::lock_guard lock(mutex_);
  Lane &self = lanes_[size_t(lane)], &other = lanes_[size_t(1 - lane)];
  // Nobody saves up turns while away.
  if (!there(lane, now_ns())) self.used = std::max(self.used, other.used);
  self.inside = true;
}

int Partition::turn(int lane) {
  std::unique_lock lock(mutex_);
  Lane &self = lanes_[size_t(lane)], &other = lanes_[size_t(1 - lane)];
  for (;;) {
    const int64_t now = now_ns();
    if (!there(1 - lane, now)) {
      holder_ = lane;
      since_ = now;
      return cores_;
    }
    const double first = first_.load(std::memory_order_relaxed);
    const double mine = (lane == 0 ? first : 1.0 - first) * cores_;
    const int whole = int(mine + 1e-6), rest = int(cores_ - mine + 1e-6);
    if (whole + rest == cores_) {
      if (holder_ == lane) holder_ = -1;
      return whole;
    }
    const double weight = mine - whole;
    if (holder_ == lane) {
      if (since_ >= 0) self.used += double(now - since_) / weight;
      since_ = now;
      if (!other.inside || self.used <= other.used) return whole + 1;
      holder_ = 1 - lane;
      since_ = -1;
      passed_.notify_all();
    } else if (holder_ < 0 || !other.inside) {
      holder_ = lane;
      since_ = now;
      return whole + 1;
    }
    if (whole > 0) return whole;
    passed_.wait_for(lock, std::chrono::milliseconds(2));
  }
}

void Partition::leave(int lane) {
  const std::lock_guard lock(mutex_);
  Lane& self = lanes_[size_t(lane)];
  self.inside = false;
  self.left = now_ns();
  if (holder_ == lane) {
    holder_ = -1;
    passed_.notify_all();
  }
}

Lanes::Lanes(std::shared_ptr<const Model> model, int threads)
    : model_(std::move(model)), partition_(threads > 0 ? threads : Pool::instance().threads()) {
  for (auto& batch : batches_) batch = std::make_unique<Batch>(*model_);
}

Lanes::~Lanes() = default;

void Lanes::step(int lane, const std::vector<Part>& parts, float* logits) {
  const std::lock_guard lock(busy_[size_t(lane)]);
  struct Inside {
    Partition& partition;
    int lane;
    Inside(Partition& p, int l) : partition(p), lane(l) { partition.enter(lane); }
    ~Inside() { partition.leave(lane); }
  } inside(partition_, lane);
  Pool::Session session(Pool::team(lane), partition_.cores());
  model_->feed(parts, logits, *batches_[size_t(lane)], session, [&] { session.use(partition_.turn(lane)); });
}

}  // namespace headway
