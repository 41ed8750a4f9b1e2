#include "base/thread_pool.h"

#include "base/os.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace alloy {
namespace {

constexpr int spins_before_yield = 2000;   // about 20-50 us: longer than a step, shorter than a time slice
constexpr int spins_before_park = 20000;   // between the graphs of one token stream
constexpr uint64_t max_threads = 1024;

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

class pool {
  public:
    // Never destroyed while the process lives: workers may be parked in it at exit.
    static pool & of_process() {
        static std::atomic<pool *> current{nullptr};
        static std::mutex making;
        pool * p = current.load(std::memory_order_acquire);
        if (p != nullptr && p->process_ == os::process_id()) return *p;
        std::lock_guard lock(making);
        p = current.load();
        if (p == nullptr || p->process_ != os::process_id()) { // after a fork the old one has no threads
            p = new pool;
            current.store(p, std::memory_order_release);
        }
        return *p;
    }

    bool lease() { return !leased_.exchange(true, std::memory_order_acquire); }
    void give_back() { leased_.store(false, std::memory_order_release); }

    void run(int num_threads, pool_function function, void * user) {
        num_threads = start_workers(num_threads);
        function_ = function;
        user_ = user;
        running_.store(num_threads - 1, std::memory_order_relaxed);
        {
            std::lock_guard lock(mutex_);
            const uint64_t number = run_.load(std::memory_order_relaxed) / max_threads + 1;
            run_.store(number * max_threads + static_cast<uint64_t>(num_threads), std::memory_order_release);
        }
        if (parked_.load() > 0) wake_.notify_all();
        function(user, 0, num_threads);
        for (int spins = 0; running_.load(std::memory_order_acquire) > 0; spins++) {
            if (spins < spins_before_yield) pause();
            else std::this_thread::yield();
        }
    }

    void barrier(int num_threads) {
        const uint32_t sense = barrier_sense_.load(std::memory_order_relaxed);
        if (barrier_arrived_.fetch_add(1, std::memory_order_acq_rel) == num_threads - 1) {
            barrier_arrived_.store(0, std::memory_order_relaxed);
            barrier_sense_.store(sense + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; barrier_sense_.load(std::memory_order_acquire) == sense; spins++) {
            if (spins < spins_before_yield) pause();
            else std::this_thread::yield();
        }
    }

    int workers() const { return static_cast<int>(workers_.size()); }

  private:
    // Returns the number of threads that can really take part.
    int start_workers(int num_threads) {
        try {
            while (static_cast<int>(workers_.size()) < num_threads - 1) {
                const int index = static_cast<int>(workers_.size()) + 1;
                workers_.emplace_back([this, index, seen = run_.load()] { work(index, seen); });
                workers_.back().detach();
            }
        } catch (...) { // no more threads to be had
        }
        return static_cast<int>(workers_.size()) + 1 < num_threads ? static_cast<int>(workers_.size()) + 1 : num_threads;
    }

    void work(int index, uint64_t seen) {
        while (true) {
            int spins = 0;
            uint64_t run;
            while ((run = run_.load(std::memory_order_acquire)) == seen) {
                if (++spins < spins_before_park) {
                    pause();
                    continue;
                }
                std::unique_lock lock(mutex_);
                parked_.fetch_add(1);
                wake_.wait(lock, [&] { return run_.load(std::memory_order_acquire) != seen; });
                parked_.fetch_sub(1);
            }
            seen = run;
            // Who does not take part must not look at anything but `run`: the next run may be under way already.
            if (static_cast<uint64_t>(index) < run % max_threads) {
                function_(user_, index, static_cast<int>(run % max_threads));
                running_.fetch_sub(1, std::memory_order_acq_rel);
            }
        }
    }

    const int process_ = os::process_id();
    std::atomic<bool> leased_{false};
    std::vector<std::thread> workers_; // touched only by the holder of the lease
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<int> parked_{0};
    std::atomic<uint64_t> run_{0}; // number of the run * max_threads + threads taking part
    std::atomic<int> running_{0};
    std::atomic<int> barrier_arrived_{0};
    std::atomic<uint32_t> barrier_sense_{0};
    pool_function function_ = nullptr;
    void * user_ = nullptr;
};

} // namespace

void run_on_pool(int wanted, pool_function function, void * user, int limit) {
    static const int usable = os::usable_cpus();
    limit = std::min(limit > 0 ? limit : usable, static_cast<int>(max_threads) - 1);
    const int num_threads = std::clamp(wanted, 1, limit);
    if (num_threads > 1) {
        pool & p = pool::of_process();
        if (p.lease()) {
            p.run(num_threads, function, user);
            p.give_back();
            return;
        }
    }
    function(user, 0, 1);
}

void pool_barrier(int num_threads) {
    if (num_threads > 1) pool::of_process().barrier(num_threads);
}

int pool_workers() { return pool::of_process().workers(); }

} // namespace alloy
