#include "thread_pool.h"

#include <chrono>
#include <cstdlib>
#include <new>
#include <system_error>
#if defined(__linux__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace quire {
namespace {

using Clock = std::chrono::steady_clock;

// A worker polls this long for the next job before it sleeps: longer than the gap between two operators of one step,
// short enough that an idle engine costs no CPU time.
constexpr std::chrono::microseconds kSpin(60);
constexpr int kPollsPerClockRead = 64;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

inline uint64_t items_of(uint64_t ticket) { return ticket >> 32; }
inline uint64_t next_of(uint64_t ticket) { return ticket & 0xffffffffu; }

// Polls `ready` for kSpin; whether it came true.
template <class Ready>
bool spin(const Ready& ready) {
  const auto deadline = Clock::now() + kSpin;
  do {
    for (int i = 0; i < kPollsPerClockRead; ++i) {
      if (ready()) return true;
      pause();
    }
  } while (Clock::now() < deadline);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) : scratch_(static_cast<size_t>(num_threads), nullptr) {
  try {
    for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { worker(i); });
  } catch (const std::system_error&) {
    // No more threads to be had: those there are do the work.
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
  for (void* block : scratch_) std::free(block);
}

bool ThreadPool::has_work() const {
  const uint64_t ticket = ticket_.load(std::memory_order_seq_cst);
  return next_of(ticket) < items_of(ticket);
}

bool ThreadPool::run_one(int thread) {
  if (!has_work()) return false;
  const uint64_t ticket = ticket_.fetch_add(1, std::memory_order_acq_rel);
  if (next_of(ticket) >= items_of(ticket)) return false;
  fn_(context_, static_cast<int64_t>(next_of(ticket)), thread);
  done_.fetch_add(1, std::memory_order_release);
  return true;
}

void ThreadPool::run(int64_t num_items, TaskFn fn, void* context) {
  if (num_items <= 1 || workers_.empty()) {
    for (int64_t item = 0; item < num_items; ++item) fn(context, item, 0);
    return;
  }
  fn_ = fn;
  context_ = context;
  done_.store(0, std::memory_order_relaxed);
  ticket_.store(static_cast<uint64_t>(num_items) << 32, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }  // a worker between its last look and its wait must not miss the call
    wake_.notify_all();
  }
  while (run_one(0)) {
  }
  const auto all_done = [&] { return done_.load(std::memory_order_acquire) == num_items; };
  while (!spin(all_done)) std::this_thread::yield();
}

void ThreadPool::sleep_until_work() {
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [this] { return stop_ || has_work(); });
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

void ThreadPool::worker(int thread) {
  while (!stop_) {
    if (run_one(thread)) continue;
    if (!spin([this] { return has_work() || stop_.load(std::memory_order_relaxed); })) sleep_until_work();
  }
}

bool ThreadPool::reserve_scratch(size_t bytes) {
  constexpr size_t kPage = 4096;
  bytes = (bytes + kPage - 1) / kPage * kPage;
  if (bytes <= scratch_bytes_) return true;
  scratch_bytes_ = 0;
  for (void*& block : scratch_) {
    std::free(block);
    block = nullptr;
    if (posix_memalign(&block, kPage, bytes) != 0) return block = nullptr, false;
  }
  scratch_bytes_ = bytes;
  return true;
}

namespace {

int default_num_threads() {
  const unsigned cores = std::thread::hardware_concurrency();
  return cores ? static_cast<int>(cores) : 1;
}

// Never destroyed: a worker may still run while the process exits, and after a fork the child has no workers to join.
struct Global {
  std::mutex mutex;
  ThreadPool* pool = nullptr;
  int num_threads = default_num_threads();
};

Global& global() {
  static Global* const instance = [] {
    auto* made = new Global;
#if defined(__linux__) || defined(__APPLE__)
    // The child of a fork has none of the workers, and a lock that another thread may have held for ever.
    pthread_atfork(nullptr, nullptr, [] {
      Global& state = global();
      const int num_threads = state.num_threads;
      new (&state) Global;
      state.num_threads = num_threads;
    });
#endif
    return made;
  }();
  return *instance;
}

}  // namespace

PoolLease::PoolLease() {
  Global& state = global();
  state.mutex.lock();
  if (!state.pool) state.pool = new ThreadPool(state.num_threads);
  pool_ = state.pool;
}

PoolLease::~PoolLease() { global().mutex.unlock(); }

void set_num_threads(int num_threads) {
  Global& state = global();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (state.num_threads == num_threads) return;
  delete state.pool;
  state.pool = nullptr;
  state.num_threads = num_threads;
}

int get_num_threads() {
  Global& state = global();
  std::lock_guard<std::mutex> lock(state.mutex);
  return state.num_threads;
}

}  // namespace quire
