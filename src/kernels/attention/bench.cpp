// bench_attention [CELLS..]: every row of kernels.inc against the host's own FLASH_ATTN_EXT on cells of the same type, one thread, no mask.
// Cells of `decode` (one token) are read from memory: copies are used in turn until they exceed any cache. `of limit`: bytes over a
// loop that only reads for decode; multiplications over what f32 (int8: 8-bit) products in registers reach for prompts.
#include "kernels/attention/attention.h"
#include "kernels/rowwise/rowwise.h"
#include "support/bench.h"
#include "support/listed.h"
#include "support/peaks.h"
#include "support/stock_host.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

namespace alloy {
namespace {

using listed = test::listed<cell_type, const attention_cells *>;
const listed list[] = {
#define ALLOY_KERNEL(cells, token) {cell_type::cells, isa::token, "attention_" #cells "_" #token, &attention_##cells##_##token},
#include "kernels/attention/kernels.inc"
#undef ALLOY_KERNEL
};

struct shape {
    const char * name;
    int64_t d, kv_heads, group, tokens, cells;
    bool int8;
};
constexpr shape shapes[] = {
    {"decode", 64, 8, 4, 1, 4096, false}, {"decode", 128, 8, 4, 1, 4096, false}, {"prompt", 64, 1, 4, 512, 4096, false},
    {"prompt", 128, 1, 4, 512, 4096, false}, {"int8 prompt", 64, 1, 4, 512, 4096, true}, {"int8 prompt", 128, 1, 4, 512, 4096, true},
    {"int8 prompt", 256, 1, 4, 512, 4096, true},
};
constexpr size_t beyond_caches = size_t(128) << 20;

// Queries, and copies of K and V as llama.cpp's cache holds them: all heads of a cell together.
struct scene {
    const shape & s;
    int64_t row, layer, copies; // bytes of one head's row and of all cells of K; layers
    test::huge_bytes k, v;
    test::floats q, out, state, scratch;
    std::vector<uint8_t> sight;
    std::vector<std::vector<attention_row>> rows; // of each KV head
    std::vector<std::vector<attention_page>> pages; // of each KV head, of K and then of V
    std::vector<attention_args> args;
    std::vector<attention_state> states;
    attention_counts counts{};

    scene(const shape & s, cell_type type)
        : s(s), row(cell_row_bytes(type, s.d) + (is_coded(type) ? 2 : 0)), layer(row * s.kv_heads * s.cells),
          copies(s.tokens == 1 ? static_cast<int64_t>(beyond_caches) / (2 * layer) + 1 : 1), k(static_cast<size_t>(layer * copies)), v(static_cast<size_t>(layer * copies)),
          q(s.d * s.kv_heads * s.group * s.tokens), out(s.d * s.kv_heads * s.group * s.tokens),
          state(s.kv_heads * attention_state_floats(state_shape())), scratch(attention_scratch_floats(s.group * s.tokens, s.d, s.d)),
          sight(static_cast<size_t>(s.cells / attention_block), sight_visible) {
        fill(type, k, 1);
        fill(type, v, 2);
        const int64_t rotation = s.int8 && !is_quantised(type) ? rotation_of(s.d) : 0; // quantised cells come rotated
        const int64_t heads = s.kv_heads * s.group;
        for (int64_t i = 0; i < s.d * heads * s.tokens; i++) q.data[i] = static_cast<float>((i * 29) % 97 - 48) * 0.02f;
        rows.resize(static_cast<size_t>(s.kv_heads));
        pages.resize(2 * rows.size());
        for (int64_t h = 0; h < s.kv_heads; h++) {
            for (int64_t token = 0; token < s.tokens; token++) {
                for (int64_t g = 0; g < s.group; g++) {
                    const int64_t at = (token * heads + h * s.group + g) * s.d;
                    rows[h].push_back({q.data + at, out.data + at, nullptr, sight.data(), 1, -INFINITY});
                }
            }
            args.push_back({.tiles = nullptr, .k = {nullptr, s.d, row * s.kv_heads}, .v = {nullptr, s.d, row * s.kv_heads}, .num_cells = s.cells,
                            .rows = rows[h].data(), .num_rows = s.group * s.tokens, .scale = 1 / std::sqrt(static_cast<float>(s.d)), .softcap = 0,
                            .int8 = s.int8, .rotate_q = rotation, .rotate_k = rotation, .rotate_v = rotation, .rotate_out = rotation,
                            .sealed_k = 0, .sealed_v = 0, .rotate = hadamard_in_place});
            states.push_back(attention_state_at(state.data + h * attention_state_floats(state_shape()), state_shape()));
        }
    }
    attention_state_shape state_shape() const { return {s.group * s.tokens, s.d, s.d, false, false}; }

    // Heads of a cell lie together, of sealed pages each has its own.
    std::vector<attention_page> pages_at(uint8_t * layer_data, int64_t head, const attention_cells * kernels) const {
        std::vector<attention_page> found;
        for (int64_t block = 0; block < s.cells / attention_block; block++) {
            const int64_t of_cells = block * attention_block * row * s.kv_heads, page = row * attention_block;
            found.push_back({layer_data + of_cells + head * (is_coded(kernels->type) ? page : row), kernels});
        }
        return found;
    }

    static void fill(cell_type type, test::huge_bytes & bytes, uint64_t seed) {
        std::mt19937_64 engine(seed);
        auto * words = reinterpret_cast<uint64_t *>(bytes.data);
        for (size_t i = 0; i < bytes.size / 8; i++) words[i] = engine();
        if (type == cell_type::f16 || type == cell_type::bf16) { // numbers in [1/4, 1) and their negatives
            const uint64_t kept = type == cell_type::f16 ? 0x87ff87ff87ff87ff : 0x80ff80ff80ff80ff, exponent = type == cell_type::f16 ? 0x3400 : 0x3e00;
            for (size_t i = 0; i < bytes.size / 8; i++) words[i] = (words[i] & kept) | exponent * 0x0001000100010001;
        } else if (type == cell_type::f32) {
            for (size_t i = 0; i < bytes.size / 8; i++) words[i] = (words[i] & 0x807fffff807fffff) | 0x3e8000003e800000;
        } else if (is_coded(type)) { // small scales
            for (size_t i = 0; i < bytes.size / 8; i++) words[i] &= 0x33ff33ff33ff33ff;
        } else {
            const size_t block = static_cast<size_t>(cell_row_bytes(type, 32));
            const uint16_t scale = 0x1800; // 1/512
            for (size_t i = 0; i + block <= bytes.size; i += block) {
                std::memcpy(bytes.data + i, &scale, 2);
                if (type == cell_type::q4_1 || type == cell_type::q5_1) std::memcpy(bytes.data + i + 2, &scale, 2);
            }
        }
    }

    void run(const attention_cells * kernels, int64_t copy) {
        for (int64_t h = 0; h < s.kv_heads; h++) {
            pages[2 * h] = pages_at(k.data + copy % copies * layer, h, kernels);
            pages[2 * h + 1] = pages_at(v.data + copy % copies * layer, h, kernels);
            args[h].tiles = kernels->tiles;
            args[h].k.pages = pages[2 * h].data();
            args[h].v.pages = pages[2 * h + 1].data();
            attention_begin(args[h], states[h]);
            if (s.tokens > 1) counts = attend_tiles(args[h], states[h], scratch.data);
        }
        for (int64_t b = 0; b * attention_block < s.cells && s.tokens == 1; b++) {
            for (int64_t h = 0; h < s.kv_heads; h++) attend_block(args[h], states[h], b, h, s.kv_heads);
        }
        for (int64_t h = 0; h < s.kv_heads; h++) attention_finish(args[h], &states[h], 1, 0, args[h].num_rows);
    }

#ifdef ALLOY_HOST_HEADERS
    ggml_tensor * stock_node(const test::stock_host & host, ggml_context * context, int type, int64_t copy) {
        const int64_t heads = s.kv_heads * s.group;
        const auto cells_at = [&](test::huge_bytes & bytes) {
            ggml_tensor * t = test::at(host.ggml_new_tensor_3d(context, static_cast<ggml_type>(type), s.d, s.cells, s.kv_heads), bytes.data + copy % copies * layer);
            t->nb[1] = static_cast<size_t>(row * s.kv_heads);
            t->nb[2] = static_cast<size_t>(row);
            t->nb[3] = t->nb[1] * static_cast<size_t>(s.cells);
            return t;
        };
        ggml_tensor * queries = test::at(host.ggml_new_tensor_3d(context, GGML_TYPE_F32, s.d, s.tokens, heads), q.data);
        queries->nb[1] = static_cast<size_t>(s.d * heads) * 4;
        queries->nb[2] = static_cast<size_t>(s.d) * 4;
        return test::at(host.ggml_flash_attn_ext(context, queries, cells_at(k), cells_at(v), nullptr, args[0].scale, 0, 0), out.data);
    }
#endif
};

void measure(const listed & row, const shape & s, double cycle) {
    scene m(s, row.op);
    const int64_t repeats = s.tokens == 1 ? m.copies : 1;
    const auto ours = [&] {
        for (int64_t i = 0; i < repeats; i++) m.run(row.run, i);
    };
    test::timing t = {};
#ifdef ALLOY_HOST_HEADERS
    static const test::stock_host host;
    // Codecs are measured against f16, which they stand for.
    const int host_type = is_coded(row.op) ? traits_of_cells[static_cast<int>(cell_type::f16)].host_type : traits_of_cells[static_cast<int>(row.op)].host_type;
    scene stock(s, is_coded(row.op) ? cell_type::f16 : row.op);
    if (host.present) {
        int64_t copy = 0;
        test::stock_graph graph(host, static_cast<int>(repeats), [&](ggml_context * context) {
            return stock.stock_node(host, context, host_type, copy++);
        });
        t = test::in_turn(ours, [&] { graph.run(); }, s.tokens == 1 ? 7 : 3);
    }
#endif
    if (t.ours == 0) t = test::alone(ours);
    t.ours /= static_cast<double>(repeats);
    const double macs = static_cast<double>(2 * s.d * s.cells * s.kv_heads * s.group * s.tokens), bytes = 2.0 * static_cast<double>(m.layer);
    double limit = s.int8 ? macs / test::peak_int8(row.token) : macs / test::peak_f32(row.token);
    if (s.tokens == 1) {
        volatile uint64_t sink = 0;
        limit = bytes / (static_cast<double>(m.k.size) / test::alone([&] { sink = sink ^ test::read_all(m.k.data, m.k.size / 64 * 64); }).ours);
    }
    std::printf("%-32s %-11s %4lld %6lld %10.1f %9.2f %8.1f %8.1f %8.0f%% %8.2f\n", row.name, s.name, static_cast<long long>(s.d),
                static_cast<long long>(s.cells), t.ours * 1e6, t.ours / cycle / macs * 1e3, macs / t.ours * 1e-9, bytes / t.ours * 1e-9, 100 * limit / t.ours, t.ratio);
    std::fflush(stdout);
}

} // namespace
} // namespace alloy

int main(int argc, char ** argv) {
    const double cycle = alloy::test::seconds_per_cycle();
    std::printf("clock %.2f GHz\n%-32s %-11s %4s %6s %10s %9s %8s %8s %9s %8s\n", 1e-9 / cycle, "kernel", "case", "d", "cells", "us", "cyc/kMAC",
                "GMAC/s", "GB/s", "of limit", "x host");
    for (const auto & row : alloy::list) {
        bool wanted = argc == 1;
        for (int i = 1; i < argc; i++) wanted = wanted || std::strstr(row.name, argv[i]) != nullptr;
        if (!wanted || !alloy::isa_has(alloy::isa_of_cpu(), row.token)) continue;
        for (const alloy::shape & s : alloy::shapes) alloy::measure(row, s, cycle);
    }
}
