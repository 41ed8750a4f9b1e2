// Timing for the benchmarks of the kernel families: ours and the host's in turn, so that a change of clock or load meets both.
#pragma once
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <sys/mman.h>
#include <vector>

namespace alloy::test {

inline double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds of one cycle, from a chain of dependent additions.
inline double seconds_per_cycle() {
    constexpr int steps = 1 << 20;
    double best = 1;
    for (int round = 0; round < 5; round++) {
        uint64_t x = 1, y = 3;
        const double start = now();
        for (int i = 0; i < steps / 8; i++) {
#define ALLOY_STEP x += y; __asm__ volatile("" : "+r"(x), "+r"(y));
            ALLOY_STEP ALLOY_STEP ALLOY_STEP ALLOY_STEP ALLOY_STEP ALLOY_STEP ALLOY_STEP ALLOY_STEP
#undef ALLOY_STEP
        }
        best = std::min(best, (now() - start) / steps);
    }
    return best;
}

// Seconds of one call of f, over about `span` seconds.
template <class F> double seconds_per_call(F && f, double span) {
    int64_t calls = 1;
    for (;;) {
        const double start = now();
        for (int64_t i = 0; i < calls; i++) f();
        const double time = now() - start;
        if (time >= span) return time / static_cast<double>(calls);
        calls = time <= span / 16 ? calls * 8 : static_cast<int64_t>(static_cast<double>(calls) * 1.2 * span / time) + 1;
    }
}

inline double median(std::vector<double> x) {
    std::nth_element(x.begin(), x.begin() + static_cast<ptrdiff_t>(x.size() / 2), x.end());
    return x[x.size() / 2];
}

struct timing {
    double ours;  // seconds a call, best of the rounds
    double ratio; // other / ours, median of the rounds' ratios; 0 without another
};

// Rounds of ours(), then other(), each shorter than a time slice, so that on a shared machine most rounds are undisturbed.
constexpr int num_rounds = 21;
constexpr double round_span = 0.001; // seconds

template <class Ours, class Other> timing in_turn(Ours && ours, Other && other, int rounds = num_rounds) {
    std::vector<double> times, ratios;
    for (int round = 0; round < rounds; round++) {
        times.push_back(seconds_per_call(ours, round_span));
        ratios.push_back(seconds_per_call(other, round_span) / times.back());
    }
    return {*std::min_element(times.begin(), times.end()), median(ratios)};
}

template <class Ours> timing alone(Ours && ours) {
    double best = seconds_per_call(ours, round_span);
    for (int round = 1; round < num_rounds; round++) best = std::min(best, seconds_per_call(ours, round_span));
    return {best, 0};
}

// Floats at a cache line's start. Each array starts elsewhere in its page: a load 4096 bytes behind a store would wait for it.
class floats {
  public:
    explicit floats(size_t n, float value = 0) {
        static size_t line = 0;
        line = (line + 9) % 64;
        base_ = static_cast<char *>(::operator new(n * 4 + 8192, std::align_val_t(4096)));
        data = reinterpret_cast<float *>(base_ + line * 64);
        std::fill_n(data, n, value);
    }
    ~floats() { ::operator delete(base_, std::align_val_t(4096)); }
    floats(const floats &) = delete;
    floats & operator=(const floats &) = delete;
    float * data;

  private:
    char * base_;
};

// Memory in huge pages, as the plugin's own buffers are: with small ones, jumps from row to row wait for address translation.
class huge_bytes {
  public:
    explicit huge_bytes(size_t n) : data(static_cast<uint8_t *>(::operator new(n + slack, std::align_val_t(page)))), size(n) {
        madvise(data, n + slack, MADV_HUGEPAGE);
    }
    ~huge_bytes() { ::operator delete(data, std::align_val_t(page)); }
    huge_bytes(const huge_bytes &) = delete;
    huge_bytes & operator=(const huge_bytes &) = delete;
    uint8_t * const data;
    const size_t size;

  private:
    static constexpr size_t page = size_t(2) << 20, slack = 4096;
};

} // namespace alloy::test
