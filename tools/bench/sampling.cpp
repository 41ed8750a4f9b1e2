// bench_sampling: one token from a row of logits, ours over the host's own chain of samplers (array of candidates included), in turn, one
// thread. And TOP_K alone beside one pass that only reads the row.
#include "support/bench.h"
#include "support/sampling_oracle.h"
#include "support/stock_sampler.h"

#include <cstdio>
#include <cstring>
#include <ctime>

namespace alloy {
namespace {

using sampling::chain;
using test::logits;

struct shape {
    const char * name;
    chain c;
    logits kind;
    double target; // over the host's chain; 0: not slower
};
const shape shapes[] = {
    {"default (k 40, p .95, min-p .05, T .8)", {.top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .temperature = 0.8f}, logits::peaked, 5},
    {"top-k 1000, p .95", {.top_k = 1000, .top_p = 0.95f}, logits::peaked, 0},
    {"top-p .95, peaked", {.top_p = 0.95f}, logits::peaked, 15},
    {"top-p .95, thousands", {.top_p = 0.95f}, logits::bulk, 15},
    {"top-p .95, thousands, T .8", {.top_p = 0.95f, .temperature = 0.8f}, logits::bulk, 15},
    {"top-p .95, flat", {.top_p = 0.95f}, logits::flat, 15},
    {"min-p .05", {.min_p = 0.05f}, logits::peaked, 15},
    {"top-n-sigma 1, k 40", {.top_n_sigma = 1, .top_k = 40}, logits::peaked, 0},
    {"dist", {}, logits::peaked, 12},
    {"dist, T .8, flat", {.temperature = 0.8f}, logits::flat, 12},
    {"greedy", {.temperature = 0}, logits::peaked, 0},
};

// CPU time of this thread, which neighbours on the machine do not take.
double spent() {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}
template <class F> double seconds_of(F && f) {
    int calls = 0;
    const double start = spent();
    double time = 0;
    for (; time < 0.002; time = spent() - start) f(), calls++;
    return time / calls;
}
template <class Ours, class Other> test::timing in_turn(Ours && ours, Other && other) {
    std::vector<double> times, ratios;
    for (int round = 0; round < 11; round++) {
        times.push_back(seconds_of(ours));
        ratios.push_back(seconds_of(other) / times.back());
    }
    return {*std::min_element(times.begin(), times.end()), test::median(ratios)};
}

void measure(const shape & s, int64_t n) {
    const std::vector<float> row = test::make_logits(s.kind, n, 1);
    test::stock_sampler stock(s.c, 7, static_cast<int32_t>(n));
    test::seeded_sampler ours(s.c, 7);
    int64_t sink = 0;
    const test::timing t = in_turn([&] { sink += ours.draw(row); }, [&] { sink += stock.draw(row); });
    char target[32] = "not slower";
    if (s.target > 0) std::snprintf(target, sizeof(target), "%.0f", s.target);
    std::printf("%-40s %7lld %9.1f %8.1f   %s%s\n", s.name, static_cast<long long>(n), t.ours * 1e6, t.ratio, target, sink < 0 ? " " : "");
    std::fflush(stdout);
}

} // namespace
} // namespace alloy

int main(int argc, char ** argv) {
    const char * only = argc > 1 ? argv[1] : "";
    std::printf("%-40s %7s %9s %8s   %s\n", "chain", "tokens", "us", "x host", "target");
    for (const auto & s : alloy::shapes) {
        if (!std::strstr(s.name, only)) continue;
        for (const int64_t n : {32000, 128256, 151936, 262144}) alloy::measure(s, n);
    }
    for (const int64_t n : {32000, 128256, 151936, 262144}) {
        const std::vector<float> row = alloy::test::make_logits(alloy::logits::peaked, n, 1);
        alloy::select_memory m;
        double pass = alloy::test::alone([&] { alloy::block_maxima(row.data(), n, m); }).ours;
        for (const int64_t k : {10, 40, 1000, 2048}) {
            const double top = alloy::test::alone([&] { alloy::top_ranks(row.data(), n, k, m); }).ours;
            std::printf("TOP_K(%lld) of %lld: %.1f us, one pass %.1f us\n", static_cast<long long>(k), static_cast<long long>(n), top * 1e6, pass * 1e6);
        }
        std::vector<int32_t> ids(static_cast<size_t>(n));
        std::printf("ARGSORT of %lld: %.0f us\n", static_cast<long long>(n), alloy::test::alone([&] { alloy::argsort(row.data(), n, true, ids.data(), m); }).ours * 1e6);
    }
}
