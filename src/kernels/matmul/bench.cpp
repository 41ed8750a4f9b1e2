// bench_matmul [TYPE..]: every row of kernels.inc against the host's own MUL_MAT for the same type and shape, in the layout that
// the host would choose (its repacked one where it has one), one thread, activations quantised inside both timings.
// Weights of 1 and 4 columns are read from memory: copies are used in turn until they exceed any cache. `of peak`: multiplications
// over what dot products (f32: fused multiply-adds) in registers reach; `of read`: bytes over a loop that only reads.
#include "kernels/matmul/matmul.h"
#include "formats/act_q8.h"
#include "kernels/quantize/quantize.h"
#include "support/bench.h"
#include "support/gguf_reference.h"
#include "support/listed.h"
#include "support/peaks.h"
#include "support/stock_host.h"

#include <cstdio>
#include <cstring>

namespace alloy {
namespace {

using listed = test::listed<weight_type, matmul_kernel>;
const listed list[] = {
#define ALLOY_KERNEL(weights, token) \
    {weight_type::weights, isa::token, "matmul_f32_" #weights "_" #token, matmul_f32_##weights##_##token},
#include "kernels/matmul/kernels.inc"
#undef ALLOY_KERNEL
};

double peak_of(const listed & row) {
    return is_floating(format_of(row.op)) ? test::peak_f32(row.token) : test::peak_int8(row.token);
}

// --- one product -------------------------------------------------------------------------------------------------------------------------
constexpr int64_t m = 2048;
constexpr size_t beyond_caches = size_t(192) << 20;

struct product {
    weight_type type;
    int64_t k, n, copies;
    size_t bytes; // of one copy
    std::vector<uint8_t> gguf;
    uint8_t * packed;
    test::floats x, out;
    std::vector<uint8_t> quantized;
    std::vector<const void *> acts;
    std::vector<float *> outs;

    product(weight_type type, int64_t k, int64_t n, bool from_memory) : type(type), k(k), n(n), x(k * n), out(m * n) {
        const weight_format & f = format_of(type);
        std::mt19937_64 engine(1);
        gguf = test::random_gguf(type, k, m, 0.01, engine);
        bytes = static_cast<size_t>(packed_group_bytes(f, k) * packed_groups(m));
        copies = from_memory ? static_cast<int64_t>(beyond_caches / bytes + 1) : 1;
        packed = static_cast<uint8_t *>(::operator new(bytes * static_cast<size_t>(copies), std::align_val_t(4096)));
        for (int64_t g = 0; g < packed_groups(m); g++) {
            const int64_t row_bytes = test::gguf_row_bytes(type, k);
            pack_rows(type, k, gguf.data() + g * packed_rows * row_bytes, row_bytes, 0, packed_rows, packed + g * packed_group_bytes(f, k));
        }
        for (int64_t c = 1; c < copies; c++) std::memcpy(packed + c * static_cast<int64_t>(bytes), packed, bytes);
        for (int64_t i = 0; i < k * n; i++) x.data[i] = static_cast<float>((i * 29) % 97 - 48) * 0.1f;
        const int64_t row = f.acts == activation::f32 ? 0 : act_q8_row_size(layout(), k);
        quantized.resize(static_cast<size_t>(row * n) + 64);
        auto * base = reinterpret_cast<uint8_t *>((reinterpret_cast<uintptr_t>(quantized.data()) + 63) / 64 * 64);
        for (int64_t c = 0; c < n; c++) {
            acts.push_back(row ? static_cast<void *>(base + c * row) : x.data + c * k);
            outs.push_back(out.data + c * m);
        }
    }
    ~product() { ::operator delete(packed, std::align_val_t(4096)); }
    act_q8_layout layout() const { return format_of(type).acts == activation::q8_32 ? act_q8_32 : act_q8_256; }

    void run(matmul_kernel kernel, isa_set allowed, int64_t copy) {
        if (format_of(type).acts != activation::f32) {
            const quantize_args q = {.in = x.data, .out = const_cast<void *>(acts[0]), .stride_in = k * 4,
                                     .stride_out = act_q8_row_size(layout(), k), .num_rows = n, .k = k};
            find_quantize(format_of(type).acts == activation::q8_32 ? act_format::q8_32 : act_format::q8_256, allowed)(q);
        }
        const matmul_args args = {.weights = packed + copy * static_cast<int64_t>(bytes), .stride_group = packed_group_bytes(format_of(type), k),
                                  .num_rows = m, .first_row = 0, .k = k, .n = n, .acts = acts.data(), .out = outs.data(), .bias = nullptr,
                                  .residual = nullptr, .scale = 1};
        kernel(args);
    }
};

void measure(const listed & row, int64_t k, int64_t n, double peak, double read) {
    const bool from_memory = n <= 8;
    product p(row.op, k, n, from_memory);
    const isa_set allowed = row.token == isa::avx2 ? isa_bit(isa::avx2) : isa_allowed();
    int64_t next = 0;
    // All copies in one call: a round is then longer than the caches remember.
    const auto ours = [&] {
        for (int64_t c = 0; c < p.copies; c++) p.run(row.run, allowed, c);
    };
    test::timing t = {};
#ifdef ALLOY_HOST_HEADERS
    static const test::stock_host host;
    if (host.present) {
        test::stock_weights weights(host, format_of(row.op).host_type, k, m, p.copies, p.gguf.data());
        test::stock_graph graph(host, static_cast<int>(p.copies), [&](ggml_context * context) {
            ggml_tensor * x = test::at(host.ggml_new_tensor_2d(context, GGML_TYPE_F32, k, n), p.x.data);
            return test::at(host.ggml_mul_mat(context, weights.tensor(next++), x), p.out.data);
        });
        t = test::in_turn(ours, [&] { graph.run(); });
    }
#endif
    if (t.ours == 0) t = test::alone(ours);
    const double macs = static_cast<double>(m * k * n * p.copies) / t.ours, bytes = static_cast<double>(p.bytes) * static_cast<double>(p.copies) / t.ours;
    std::printf("%-30s %5lld %5lld %9.1f %8.0f%% %9.1f", row.name, static_cast<long long>(k), static_cast<long long>(n), macs * 1e-9,
                100 * macs / peak, bytes * 1e-9);
    if (from_memory) std::printf(" %8.0f%%", 100 * bytes / read);
    else std::printf(" %9s", "");
    if (t.ratio > 0) std::printf(" %8.2f\n", t.ratio);
    else std::printf("  no host\n");
    std::fflush(stdout);
}

} // namespace
} // namespace alloy

int main(int argc, char ** argv) {
    using namespace alloy;
    uint8_t * memory = static_cast<uint8_t *>(::operator new(beyond_caches, std::align_val_t(4096)));
    std::memset(memory, 1, beyond_caches);
    volatile uint64_t sum = 0;
    const double read = static_cast<double>(beyond_caches) / test::alone([&] { sum = sum ^ test::read_all(memory, beyond_caches); }).ours;
    ::operator delete(memory, std::align_val_t(4096));
    std::printf("one thread, %lld rows, reading %.1f GB/s\n%-30s %5s %5s %9s %9s %9s %9s %8s\n", static_cast<long long>(m), read * 1e-9,
                "kernel", "k", "n", "GMAC/s", "of peak", "GB/s", "of read", "/ stock");
    for (const listed & row : list) {
        bool wanted = argc < 2;
        for (int i = 1; i < argc; i++) wanted = wanted || std::strstr(row.name, argv[i]) != nullptr;
        if (!wanted || !isa_has(isa_of_cpu(), row.token)) continue;
        const double peak = peak_of(row);
        for (const int64_t n : {1, 4, 512}) measure(row, 2048, n, peak, read);
        measure(row, 8192, 512, peak, read);
    }
}
