// bench_sampling [part of a name]: one token from a row of logits, one thread, in turn.
//   chains   our sampler over the host's own chain (array of candidates included)
//   graphs   the plugin's step over the same graph (-bs) on the host's CPU backend, and over the host's own chain. Wants ALLOY_HOST_BIN and
//            ALLOY_PLUGIN, as the tests do
//   TOP_K    beside one pass that only reads the row; and many rows, as indexers of sparse attention have them, over the host's operator
#include "support/bench.h"
#include "support/sampling_graph.h"
#include "support/sampling_oracle.h"
#include "support/scene_cases.h"
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

// --- graphs

struct graph_shape {
    const char * name;
    std::vector<test::sampler_part> parts;
    chain c; // the same for the host's chain
    logits kind;
    double target; // over the host's graph
};
using enum test::part;
const graph_shape graph_shapes[] = {
    {"default, peaked", {{top_k, 40}, {top_p, 0.95f}, {min_p, 0.05f}, {temperature, 0.8f}, {draw}}, {.top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .temperature = 0.8f}, logits::peaked, 6},
    {"default, flat", {{top_k, 40}, {top_p, 0.95f}, {min_p, 0.05f}, {temperature, 0.8f}, {draw}}, {.top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .temperature = 0.8f}, logits::flat, 6},
    {"top-k 1000, p .95, peaked", {{top_k, 1000}, {top_p, 0.95f}, {temperature, 0.8f}, {draw}}, {.top_k = 1000, .top_p = 0.95f, .temperature = 0.8f}, logits::peaked, 0},
    {"top-k 1000, p .95, flat", {{top_k, 1000}, {top_p, 0.95f}, {temperature, 0.8f}, {draw}}, {.top_k = 1000, .top_p = 0.95f, .temperature = 0.8f}, logits::flat, 0},
    {"top-p .95, peaked", {{top_p, 0.95f}, {temperature, 0.8f}, {draw}}, {.top_p = 0.95f, .temperature = 0.8f}, logits::peaked, 15},
    {"top-p .95, flat", {{top_p, 0.95f}, {temperature, 0.8f}, {draw}}, {.top_p = 0.95f, .temperature = 0.8f}, logits::flat, 15},
    {"min-p .05, peaked", {{min_p, 0.05f}, {temperature, 0.8f}, {draw}}, {.min_p = 0.05f, .temperature = 0.8f}, logits::peaked, 15},
    {"min-p .05, flat", {{min_p, 0.05f}, {temperature, 0.8f}, {draw}}, {.min_p = 0.05f, .temperature = 0.8f}, logits::flat, 15},
    {"dist, peaked", {{temperature, 0.8f}, {draw}}, {.temperature = 0.8f}, logits::peaked, 12},
    {"dist, flat", {{temperature, 0.8f}, {draw}}, {.temperature = 0.8f}, logits::flat, 12},
};

void measure(const test::device & d, const graph_shape & s, int64_t n) {
    const std::vector<float> row = test::make_logits(s.kind, n, 1);
    test::sampling_graph ours(d.backend, d.host_backend, {s.parts}, n, 7), stock(d.host_backend, d.host_backend, {s.parts}, n, 7);
    for (test::sampling_graph * g : {&ours, &stock}) g->set_row(0, row);
    test::stock_sampler chain_of_host(s.c, 7, static_cast<int32_t>(n));
    const auto run = [](test::sampling_graph & g) {
        g.set_inputs();
        g.compute();
    };
    int64_t sink = 0;
    const test::timing over_graph = in_turn([&] { run(ours); }, [&] { run(stock); });
    const test::timing over_chain = in_turn([&] { run(ours); }, [&] { sink += chain_of_host.draw(row); });
    std::printf("%-40s %7lld %9.1f %8.1f %8.1f   %.0f%s\n", s.name, static_cast<long long>(n), over_graph.ours * 1e6, over_graph.ratio, over_chain.ratio, s.target, sink < 0 ? " " : "");
    std::fflush(stdout);
}

// TOP_K of `rows` rows on either backend.
void measure_top_k(const test::device & d, int64_t n, int64_t rows, int64_t k) {
    std::vector<float> x;
    for (int64_t r = 0; r < rows; r++) {
        const std::vector<float> row = test::make_logits(logits::bulk, n, static_cast<uint64_t>(r));
        x.insert(x.end(), row.begin(), row.end());
    }
    ggml_context * nodes = ggml_init({.mem_size = size_t{1} << 20, .mem_buffer = nullptr, .no_alloc = true});
    ggml_backend_buffer_t buffers[2];
    ggml_cgraph * graphs[2];
    ggml_backend_t backends[] = {d.backend, d.host_backend};
    for (int i = 0; i < 2; i++) {
        ggml_context * own = ggml_init({.mem_size = size_t{1} << 20, .mem_buffer = nullptr, .no_alloc = true});
        ggml_tensor * scores = ggml_new_tensor_2d(own, GGML_TYPE_F32, n, rows);
        ggml_tensor * best = ggml_top_k(own, scores, static_cast<int>(k));
        buffers[i] = ggml_backend_alloc_ctx_tensors_from_buft(own, ggml_backend_get_default_buffer_type(backends[i]));
        ggml_backend_tensor_set(scores, x.data(), 0, x.size() * sizeof(float));
        graphs[i] = ggml_new_graph(nodes);
        ggml_build_forward_expand(graphs[i], best);
    }
    for (const int threads : {1, 2}) {
        test::set_threads(d, threads);
        const auto wall = test::in_turn([&] { ggml_backend_graph_compute(backends[0], graphs[0]); }, [&] { ggml_backend_graph_compute(backends[1], graphs[1]); }, 7);
        std::printf("TOP_K(%lld) of %lld, %lld rows, %d threads: %.0f us, %.1f x host\n", static_cast<long long>(k), static_cast<long long>(n), static_cast<long long>(rows), threads,
                    wall.ours * 1e6, wall.ratio);
        std::fflush(stdout);
    }
    test::set_threads(d, 1);
    for (ggml_backend_buffer_t b : buffers) ggml_backend_buffer_free(b);
    ggml_free(nodes);
}

void measure_graphs(const char * only) {
    test::on_device([&](test::device & d) {
        test::set_threads(d, 1);
        std::printf("%-40s %7s %9s %8s %8s   %s\n", "graph", "tokens", "us", "x graph", "x chain", "target");
        for (const auto & s : graph_shapes) {
            if (!std::strstr(s.name, only)) continue;
            for (const int64_t n : {32000, 128256, 151936, 262144}) measure(d, s, n);
        }
        if (*only == 0 || std::strstr("TOP_K", only)) {
            measure_top_k(d, 32768, 64, 2048);
            measure_top_k(d, 4096, 512, 2048);
            measure_top_k(d, 262144, 4, 10);
        }
        return true;
    });
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
    alloy::measure_graphs(only);
    if (*only != 0 && !std::strstr("TOP_K", only)) return 0;
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
