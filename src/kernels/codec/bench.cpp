// bench_codec: every row of kernels.inc, one thread, on a page whose rows are in L2. The host has no op to compare with.
#include "kernels/codec/codec.h"
#include "support/bench.h"
#include "support/listed.h"

#include <cstdio>
#include <cstring>
#include <random>

namespace alloy {
namespace {

using listed = test::listed<kv_codec, codec_kernel>;
const listed list[] = {
#define ALLOY_KERNEL(codec, token) {kv_codec::codec, isa::token, "encode_" #codec "_" #token, encode_##codec##_##token},
#include "kernels/codec/kernels.inc"
#undef ALLOY_KERNEL
};

void measure(const listed & row, int64_t d, double cycle) {
    test::floats in(kv_page_cells * d), page(kv_page_cells * d);
    std::mt19937_64 engine(1);
    std::normal_distribution<float> normal(0, 1);
    for (int64_t i = 0; i < kv_page_cells * d; i++) in.data[i] = normal(engine);
    const encode_args args = {.rows = in.data, .stride = 4 * d, .d = d, .page = reinterpret_cast<uint8_t *>(page.data)};
    const double time = test::alone([&] { row.run(args); }).ours;
    std::printf("%-20s %5lld %10.2f %8.3f\n", row.name, static_cast<long long>(d), time * 1e6,
                time / static_cast<double>(kv_page_cells * d) / cycle);
    std::fflush(stdout);
}

} // namespace
} // namespace alloy

int main(int argc, char ** argv) {
    const char * only = argc > 1 ? argv[1] : ""; // part of a kernel's name
    const double cycle = alloy::test::seconds_per_cycle();
    std::printf("clock %.2f GHz\n%-20s %5s %10s %8s\n", 1e-9 / cycle, "kernel", "d", "us/page", "cyc/elem");
    for (const auto & row : alloy::list) {
        if (!alloy::isa_has(alloy::isa_of_cpu(), row.token) || !std::strstr(row.name, only)) continue;
        for (const int64_t d : {64, 128}) alloy::measure(row, d, cycle);
    }
}
