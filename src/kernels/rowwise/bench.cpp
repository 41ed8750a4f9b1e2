// bench_rowwise: every row of kernels.inc against the host's own operator (see support/stock_host.h), one thread.
// A rope row of `columns` is one token: columns / d heads of d = 128 (64 when 128 does not divide), all with the same table.
// `of memcpy` compares bytes read and written a second with those of memcpy on rows of the same size.
#include "kernels/rowwise/rowwise.h"
#include "support/bench.h"
#include "support/listed.h"
#include "support/stock_host.h"

#include <cstdio>
#include <cstring>
#include <functional>

namespace alloy {
namespace {

using listed = test::listed<rowwise_op, rowwise_kernel>;
const listed list[] = {
#define ALLOY_KERNEL(op, token) {rowwise_op::op, isa::token, "rowwise_f32_" #op "_" #token, rowwise_f32_##op##_##token},
#include "kernels/rowwise/kernels.inc"
#undef ALLOY_KERNEL
};

// Rows of these are heads.
bool is_of_heads(rowwise_op op) { return op == rowwise_op::rope_normal || op == rowwise_op::rope_neox || op == rowwise_op::hadamard; }

struct memory {
    int64_t columns, rows;
    test::floats a, b, out;
    std::vector<int32_t> positions;
    memory(int64_t columns, int64_t rows)
        : columns(columns), rows(rows), a(columns * rows, 0.25f), b(columns * rows, 0.5f), out(columns * rows), positions(rows) {
        for (int64_t i = 0; i < columns * rows; i++) a.data[i] = static_cast<float>((i * 29) % 97 - 48) * 0.1f;
        for (int64_t r = 0; r < rows; r++) positions[r] = static_cast<int32_t>(r);
    }
    int64_t head_size() const { return columns % 128 ? 64 : 128; }
};

void run_ours(const listed & row, memory & m) {
    const int64_t stride = m.columns * 4;
    rowwise_args args = {.a = m.a.data, .b = m.b.data, .out = m.out.data,
                         .stride_a = stride, .stride_b = stride, .stride_out = stride,
                         .num_rows = m.rows, .k = m.columns, .num_rotated = 0, .p0 = 1e-6f, .p1 = 0.5f};
    if (row.op == rowwise_op::rms_norm_mul) args.stride_b = 0;
    if (!is_of_heads(row.op)) return row.run(args);
    args.k = args.num_rotated = m.head_size();
    args.num_rows = m.columns / args.k;
    args.stride_a = args.stride_out = args.k * 4;
    args.stride_b = 0;
    for (int64_t token = 0; token < m.rows; token++) {
        args.a = m.a.data + token * m.columns;
        args.out = m.out.data + token * m.columns;
        args.b = m.b.data + token * args.k;
        row.run(args);
    }
}

#ifdef ALLOY_HOST_HEADERS
ggml_tensor * stock_node(const test::stock_host & host, ggml_context * context, rowwise_op op, memory & m) {
    using test::at;
    const auto rows_at = [&](float * data, int64_t rows) {
        return at(host.ggml_new_tensor_2d(context, GGML_TYPE_F32, m.columns, rows), data);
    };
    ggml_tensor * a = rows_at(m.a.data, m.rows);
    switch (op) {
        case rowwise_op::rms_norm: return at(host.ggml_rms_norm(context, a, 1e-6f), m.out.data);
        case rowwise_op::rms_norm_mul: {
            ggml_tensor * norm = at(host.ggml_rms_norm(context, a, 1e-6f), m.out.data);
            return at(host.ggml_mul(context, norm, rows_at(m.b.data, 1)), m.out.data);
        }
        case rowwise_op::add: return at(host.ggml_add(context, a, rows_at(m.b.data, m.rows)), m.out.data);
        case rowwise_op::scale: return at(host.ggml_scale_bias(context, a, 1e-6f, 0.5f), m.out.data);
        case rowwise_op::swiglu: return at(host.ggml_swiglu_split(context, a, rows_at(m.b.data, m.rows)), m.out.data);
        case rowwise_op::geglu: return at(host.ggml_geglu_split(context, a, rows_at(m.b.data, m.rows)), m.out.data);
        default: break;
    }
    if (op == rowwise_op::hadamard) {
        ggml_tensor * node = host.ggml_mul_mat(context, at(host.ggml_new_tensor_2d(context, GGML_TYPE_F32, m.head_size(), m.head_size()), m.b.data),
                                               at(host.ggml_new_tensor_2d(context, GGML_TYPE_F32, m.head_size(), m.columns / m.head_size() * m.rows), m.a.data));
        host.ggml_mul_mat_set_hint(node, GGML_HINT_SRC0_IS_HADAMARD);
        return at(node, m.out.data);
    }
    const int64_t d = m.head_size();
    ggml_tensor * heads = at(host.ggml_new_tensor_3d(context, GGML_TYPE_F32, d, m.columns / d, m.rows), m.a.data);
    ggml_tensor * positions = at(host.ggml_new_tensor_1d(context, GGML_TYPE_I32, m.rows), m.positions.data());
    const int mode = op == rowwise_op::rope_neox ? GGML_ROPE_TYPE_NEOX : 0;
    const int n = static_cast<int>(d);
    return at(host.ggml_rope_ext(context, heads, positions, nullptr, n, mode, 0, 10000, 1, 0, 1, 32, 1), m.out.data);
}
#endif

// Floats read and written for each column, for the bandwidth.
double floats_moved(rowwise_op op) {
    switch (op) {
        case rowwise_op::scale:
        case rowwise_op::hadamard:
        case rowwise_op::rope_normal:
        case rowwise_op::rope_neox: return 2;
        default: return 3; // the norms read their row twice
    }
}

void measure(const listed & row, int64_t columns, int64_t rows, double cycle) {
    memory m(columns, rows);
    const auto ours = [&] { run_ours(row, m); };
    test::timing t = {};
#ifdef ALLOY_HOST_HEADERS
    static const test::stock_host host;
    if (host.present) {
        const int repeats = columns * rows < (1 << 17) ? 64 : 1;
        test::stock_graph graph(host, repeats, [&](ggml_context * context) { return stock_node(host, context, row.op, m); });
        const auto ours_repeated = [&] {
            for (int i = 0; i < repeats; i++) ours();
        };
        t = test::in_turn(ours_repeated, [&] { graph.run(); });
        t.ours /= repeats;
    }
#endif
    if (t.ours == 0) t = test::alone(ours);
    const size_t size = static_cast<size_t>(columns * rows) * 4;
    const double copy = test::alone([&] { std::memcpy(m.out.data, m.a.data, size); }).ours;
    const double elements = static_cast<double>(columns * rows), bytes = 4 * floats_moved(row.op) * elements;
    std::printf("%-34s %7lld %5lld %10.1f %8.3f %8.1f %8.0f%% %8.2f\n", row.name, static_cast<long long>(columns),
                static_cast<long long>(rows), t.ours / static_cast<double>(rows) * 1e9, t.ours / elements / cycle,
                bytes / t.ours * 1e-9, 100 * (bytes / t.ours) / (8 * elements / copy), t.ratio);
    std::fflush(stdout);
}

} // namespace
} // namespace alloy

int main(int argc, char ** argv) {
    const char * only = argc > 1 ? argv[1] : ""; // part of a kernel's name
    const double cycle = alloy::test::seconds_per_cycle();
    std::printf("clock %.2f GHz\n%-34s %7s %5s %10s %8s %8s %9s %8s\n", 1e-9 / cycle, "kernel", "columns", "rows", "ns/row",
                "cyc/elem", "GB/s", "of memcpy", "x host");
    for (const auto & row : alloy::list) {
        if (!alloy::isa_has(alloy::isa_of_cpu(), row.token) || !std::strstr(row.name, only)) continue;
        for (const int64_t columns : {576, 2048, 8192}) {
            for (const int64_t rows : {1, 512}) alloy::measure(row, columns, rows, cycle);
        }
    }
}
