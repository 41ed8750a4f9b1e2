// Shares the work of one step among threads that run at different speeds.
#pragma once
#include <atomic>
#include <cstdint>

namespace alloy::ops {

// Hands out pieces of work to the threads of one step: fast cores take more. Ready for the next run once every thread was refused.
class work_counter {
  public:
    // The next of `pieces`, or -1. Each of num_threads threads asks until it is refused.
    int64_t take(int64_t pieces, int num_threads) {
        const int64_t mine = next_.fetch_add(1, std::memory_order_relaxed);
        if (mine < pieces) return mine;
        if (mine == pieces + num_threads - 1) next_.store(0, std::memory_order_relaxed); // the last to be refused
        return -1;
    }

  private:
    std::atomic<int64_t> next_{0};
};

} // namespace alloy::ops
