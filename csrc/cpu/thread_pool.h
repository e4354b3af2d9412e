// A small pool of worker threads that run the items of one job at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace quire {

// Runs item `item` of a job on thread `thread` (0 is the caller). Must not throw.
using TaskFn = void (*)(void* context, int64_t item, int thread);

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Caller included.
  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs items [0, num_items) in any order and returns when all are done. One caller at a time.
  void run(int64_t num_items, TaskFn fn, void* context);

  // Makes `bytes` of scratch ready for every thread; false when memory is short. Contents do not survive the next call.
  bool reserve_scratch(size_t bytes);
  void* scratch(int thread) const { return scratch_[static_cast<size_t>(thread)]; }

 private:
  bool run_one(int thread);
  void worker(int thread);
  bool has_work() const;
  void sleep_until_work();

  // High half: items of the job; low half: next item to hand out. One word, so that a claim always belongs to the job
  // whose fields below are in force: a job's fields change only after all its items are done.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  TaskFn fn_ = nullptr;
  void* context_ = nullptr;

  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  std::vector<void*> scratch_;
  size_t scratch_bytes_ = 0;
};

// Holds the process's pool for one call; calls from several threads wait for each other.
class PoolLease {
 public:
  PoolLease();
  ~PoolLease();
  ThreadPool& operator*() const { return *pool_; }
  ThreadPool* operator->() const { return pool_; }

 private:
  ThreadPool* pool_;
};

void set_num_threads(int num_threads);
int get_num_threads();

}  // namespace quire
