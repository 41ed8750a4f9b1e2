// bench_quantize: every row of kernels.inc against the host's own from_float for the format with the same blocks (Q8_0 for
// q8_32, Q8_K for q8_256; see support/stock_host.h), one thread. The host's Q8_0 has no sums, ours makes them as well.
#include "kernels/quantize/quantize.h"
#include "formats/act_q8.h"
#include "support/bench.h"
#include "support/listed.h"
#include "support/stock_host.h"

#include <cstdio>
#include <cstring>

namespace alloy {
namespace {

using listed = test::listed<act_format, quantize_kernel>;
const listed list[] = {
#define ALLOY_KERNEL(format, token) \
    {act_format::format, isa::token, "quantize_" #format "_f32_" #token, quantize_##format##_f32_##token},
#include "kernels/quantize/kernels.inc"
#undef ALLOY_KERNEL
};

void measure(const listed & row, int64_t columns, int64_t rows, double cycle) {
    const act_q8_layout layout = row.op == act_format::q8_32 ? act_q8_32 : act_q8_256;
    test::floats in(columns * rows), out(columns * rows);
    for (int64_t i = 0; i < columns * rows; i++) in.data[i] = static_cast<float>((i * 29) % 97 - 48) * 0.1f;
    const quantize_args args = {.in = in.data, .out = out.data, .stride_in = columns * 4,
                                .stride_out = act_q8_row_size(layout, columns), .num_rows = rows, .k = columns};
    const auto ours = [&] { row.run(args); };
    test::timing t = {};
#ifdef ALLOY_HOST_HEADERS
    static const test::stock_host host;
    if (host.present) {
        const ggml_type type = row.op == act_format::q8_32 ? GGML_TYPE_Q8_0 : GGML_TYPE_Q8_K;
        const auto from_float = host.ggml_get_type_traits_cpu(type)->from_float;
        t = test::in_turn(ours, [&] {
            for (int64_t r = 0; r < rows; r++) {
                from_float(in.data + r * columns, reinterpret_cast<uint8_t *>(out.data) + r * args.stride_out, columns);
            }
        });
    }
#endif
    if (t.ours == 0) t = test::alone(ours);
    const double elements = static_cast<double>(columns * rows);
    const double bytes = 4 * elements + static_cast<double>(args.stride_out * rows);
    std::printf("%-34s %7lld %5lld %10.1f %8.3f %8.1f %8.2f\n", row.name, static_cast<long long>(columns),
                static_cast<long long>(rows), t.ours / static_cast<double>(rows) * 1e9, t.ours / elements / cycle,
                bytes / t.ours * 1e-9, t.ratio);
    std::fflush(stdout);
}

} // namespace
} // namespace alloy

int main(int argc, char ** argv) {
    const char * only = argc > 1 ? argv[1] : ""; // part of a kernel's name
    const double cycle = alloy::test::seconds_per_cycle();
    std::printf("clock %.2f GHz\n%-34s %7s %5s %10s %8s %8s %8s\n", 1e-9 / cycle, "kernel", "columns", "rows", "ns/row",
                "cyc/elem", "GB/s", "x host");
    for (const auto & row : alloy::list) {
        if (!alloy::isa_has(alloy::isa_of_cpu(), row.token) || !std::strstr(row.name, only)) continue;
        const bool wide = row.op == alloy::act_format::q8_256;
        for (const int64_t columns : {wide ? 768 : 576, 2048, 8192}) {
            for (const int64_t rows : {1, 512}) alloy::measure(row, columns, rows, cycle);
        }
    }
}
