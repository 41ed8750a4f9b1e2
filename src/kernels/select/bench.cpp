// bench_select: every row of kernels.inc on a row of logits, and the orders of rank.h with the best kernels, one thread. `of reading` compares
// with a loop that only reads the row. The host has these passes only inside of its samplers: tools/bench/sampling.cpp compares whole ones.
#include "kernels/select/rank.h"
#include "kernels/select/select.h"
#include "support/bench.h"
#include "support/listed.h"

#include <cstdio>
#include <cstring>
#include <random>
#include <string>

namespace alloy {
namespace {

using listed = test::listed<select_op, select_kernel>;
const listed list[] = {
#define ALLOY_KERNEL(op, token) {select_op::op, isa::token, "select_f32_" #op "_" #token, select_f32_##op##_##token},
#include "kernels/select/kernels.inc"
#undef ALLOY_KERNEL
};

// A bulk of logits and a few above it, and room for what passes write.
struct memory {
    int64_t n;
    test::floats x, maxima, lanes, values, exps;
    std::vector<int32_t> ids;
    std::vector<double> sums, mass;
    double moments[3];
    int64_t count = 0;
    float highest = 0;

    explicit memory(int64_t n)
        : n(n), x(n), maxima(select_blocks(n)), lanes(select_blocks(n) * select_lanes), values(n + select_lanes), exps(n), ids(n + select_lanes),
          sums(select_blocks(n)), mass(select_bins) {
        std::mt19937_64 engine(1);
        std::normal_distribution<float> normal(0, 2);
        for (int64_t i = 0; i < n; i++) x.data[i] = normal(engine) + (engine() % 512 == 0 ? 14.0f : 0.0f);
        highest = *std::max_element(x.data, x.data + n);
    }
    select_args args() {
        select_args a{};
        a.x = x.data;
        a.n = n;
        a.maxima = maxima.data;
        a.lane_maxima = lanes.data;
        a.lo = highest - 3;
        a.hi = highest;
        a.ids = ids.data();
        a.values = values.data;
        a.count = &count;
        a.shift = highest;
        a.scale = 1;
        a.sums = sums.data();
        a.exps = exps.data;
        a.mass = mass.data();
        a.moments = moments;
        return a;
    }
};

double time_of_reading(const memory & m) {
    volatile float sink = 0;
    return test::alone([&] {
               float sums[32] = {};
               for (int64_t i = 0; i + 32 <= m.n; i += 32) {
                   for (int j = 0; j < 32; j++) sums[j] += m.x.data[i + j];
               }
               sink = sums[0];
           }).ours;
}

void print(const char * name, int64_t n, double time, double cycle, double reading) {
    std::printf("%-34s %7lld %10.2f %8.3f %9.0f%%\n", name, static_cast<long long>(n), time * 1e6, time / static_cast<double>(n) / cycle, 100 * reading / time);
    std::fflush(stdout);
}

void measure(const listed & row, int64_t n, double cycle) {
    memory m(n);
    select_args args = m.args();
    find_select(select_op::block_max)(args); // in_range and exp_bins skip by it
    if (row.op == select_op::exp_bins) args.lo = m.highest - 20;
    print(row.name, n, test::alone([&] { row.run(args); }).ours, cycle, time_of_reading(m));
}

void measure_orders(const char * only, int64_t n, double cycle) {
    memory m(n);
    select_memory s;
    const double reading = time_of_reading(m);
    for (const int64_t k : {10, 40, 1000, 2048}) {
        const std::string name = "top_ranks " + std::to_string(k);
        if (std::strstr(name.c_str(), only)) print(name.c_str(), n, test::alone([&] { top_ranks(m.x.data, n, k, s); }).ours, cycle, reading);
    }
    if (std::strstr("argsort", only)) print("argsort", n, test::alone([&] { argsort(m.x.data, n, true, m.ids.data(), s); }).ours, cycle, reading);
}

} // namespace
} // namespace alloy

int main(int argc, char ** argv) {
    const char * only = argc > 1 ? argv[1] : ""; // part of a name
    const double cycle = alloy::test::seconds_per_cycle();
    std::printf("clock %.2f GHz\n%-34s %7s %10s %8s %10s\n", 1e-9 / cycle, "kernel", "n", "us/row", "cyc/elem", "of reading");
    for (const auto & row : alloy::list) {
        if (!alloy::isa_has(alloy::isa_of_cpu(), row.token) || !std::strstr(row.name, only)) continue;
        for (const int64_t n : {4096, 32000, 151936}) alloy::measure(row, n, cycle);
    }
    for (const int64_t n : {4096, 32000, 151936}) alloy::measure_orders(only, n, cycle);
}
