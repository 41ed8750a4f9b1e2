// The loops of family matmul. An ISA file defines in an anonymous namespace
//   struct vec   `rows` lanes of f32 or int32, 4 * rows bytes of codes: loads, bit operations, the dot product
//   struct tile  what a whole prompt is computed with: `groups` x 16 rows, up to `columns` columns, from an expanded panel
// includes this file, defines multiply_panel() and multiply_floats(), and lists its kernels. Each ISA thus compiles its own
// copy and no symbol of it leaves the object.
//
// Two ways through a matrix. Up to 8 columns (`few`): codes are expanded in registers and each weight byte is read once from memory.
// More (`many`): `groups` groups x 256 columns of weights are expanded into a panel in L1, which all columns then use; sums in f32
// wait in L2 between the panels of a row.
#include "base/check.h"
#include "kernels/matmul/expand.h"

namespace alloy {
namespace {

constexpr int64_t prefetch_distance = 8192; // in the stream of weights, into L2: into L1 it is 1.5x slower, 4 and 12 KiB 1.2x

// --- epilogue -----------------------------------------------------------------------------------------------------------------------------
// Sums of `rows` rows of column c, the first being row `first` of the call.
[[gnu::noinline]] inline void write_out(const matmul_args & args, int64_t c, int64_t first, int64_t rows, const float * sums) {
    first += args.first_row;
    float * out = args.out[c] + first;
    const float * residual = args.residual ? args.residual[c] + first : nullptr;
    const float * bias = args.bias ? args.bias + first : nullptr;
    if (!residual && !bias) {
        for (int64_t r = 0; r < rows; r++) out[r] = sums[r] * args.scale;
    } else if (!bias) {
        for (int64_t r = 0; r < rows; r++) out[r] = sums[r] * args.scale + residual[r];
    } else {
        for (int64_t r = 0; r < rows; r++) out[r] = sums[r] * args.scale + bias[r] + (residual ? residual[r] : 0);
    }
}

// --- few columns --------------------------------------------------------------------------------------------------------------------------
template <weight_type type, int n> [[gnu::noinline]] void few(const matmul_args & args) {
    using t = traits<type>;
    constexpr int block_bytes = t::f.code_bits * 64;
    column cols[n];
    for (int c = 0; c < n; c++) cols[c] = column_of<type>(args.acts[c], args.k);
    const int64_t chunks = (args.k + packed_columns - 1) / packed_columns, groups = packed_groups(args.num_rows);
    for (int64_t g = 0; g < groups; g++) {
        const uint8_t * group = args.weights + g * args.stride_group;
        const uint8_t * chunk = group + packed_body_offset(t::f, args.k);
        alignas(64) float sums[n][packed_rows];
        vec::floats acc[parts][n];
        for (int p = 0; p < parts; p++)
            for (int c = 0; c < n; c++) acc[p][c] = vec::zero();
        for (int64_t i = 0; i < chunks; i++) {
            const int64_t left = (args.k - i * packed_columns) / 32;
            const int blocks = static_cast<int>(left < 8 ? left : 8);
            const int64_t prefix = packed_prefix(t::f, blocks);
            for (int64_t line = 0; line < prefix; line += 64) vec::prefetch_stream(chunk + prefetch_distance + line);
            chunk_scales scales;
            expand_scales<type>(group + i * packed_header_chunk(t::f), chunk, blocks, scales);
            alignas(64) sub_start starts[n][16];
            for (int c = 0; c < n; c++) fill_starts<type>(cols[c], i, starts[c]);
            const uint8_t * codes = chunk + prefix;
            for (int p = 0; p < parts; p++) {
                vec::floats chunk_acc[n];
                if constexpr (t::k_quant) {
                    for (int c = 0; c < n; c++) chunk_acc[c] = vec::zero();
                }
#pragma GCC unroll 1
                for (int b = 0; b < blocks; b++) {
                    const uint8_t * block = codes + b * block_bytes;
                    if (p == 0) {
                        for (int line = 0; line < block_bytes; line += 64) vec::prefetch_stream(block + prefetch_distance + line);
                    }
                    vec::bytes w[8];
                    expand_codes<type>(block + p * part_bytes, w);
                    for (int s = 0; s < 32 / t::sub; s++) {
                        const int j = b * 32 / t::sub + s;
                        const vec::floats scale = vec::load_floats(scales.scale[j] + p * vec::rows);
                        for (int c = 0; c < n; c++) {
                            const int8_t * a = cols[c].codes + i * packed_columns + j * t::sub;
                            const vec::ints start = t::minima || t::zero == 0 ? vec::zero_ints() : vec::broadcast(&starts[c][j].from);
                            const vec::floats dot =
                                vec::to_floats(vec::template dot<t::bits, t::sub / 4, (n < 3 ? 2 : 1)>(start, w + s * (t::sub / 4), a));
                            vec::floats & sum = t::k_quant ? chunk_acc[c] : acc[p][c];
                            if constexpr (t::k_quant) sum = vec::fma(dot, scale, sum);
                            else sum = vec::fma(dot, vec::mul(scale, vec::broadcast(cols[c].scales + i * 8 + j)), sum);
                            if constexpr (t::minima) {
                                const vec::floats minimum = vec::load_floats(scales.minimum[j] + p * vec::rows);
                                sum = vec::fma(minimum, vec::broadcast(&starts[c][j].times_minimum), sum);
                            }
                        }
                    }
                }
                if constexpr (t::k_quant) {
                    for (int c = 0; c < n; c++) acc[p][c] = vec::fma(chunk_acc[c], vec::broadcast(cols[c].scales + i), acc[p][c]);
                }
            }
            chunk += packed_chunk_bytes(t::f, blocks);
        }
        const int64_t first = g * packed_rows, rows = args.num_rows - first < packed_rows ? args.num_rows - first : packed_rows;
        for (int c = 0; c < n; c++) {
            for (int p = 0; p < parts; p++) vec::store_floats(sums[c] + p * vec::rows, acc[p][c]);
            write_out(args, c, first, rows, sums[c]);
        }
    }
}

// --- many columns -------------------------------------------------------------------------------------------------------------------------
// `groups` groups x one chunk, expanded.
struct panel {
    alignas(64) uint8_t codes[tile::groups][packed_columns / 4][64];
    chunk_scales scales[tile::groups];
    int groups; // that there are, or one more to make a pair
    int blocks; // of 32 columns
    int64_t chunk;
};

constexpr int64_t panel_rows = tile::groups * packed_rows;
constexpr int64_t columns_at_once = 512; // their sums stay in L2

// Sums [n][tile::groups * 16] of columns c0 and on. Each column's rows lie in a page of their own, so that stores would wait for
// memory one after another: the lines are asked for ahead.
inline void write_all_out(const matmul_args & args, int64_t c0, int64_t n, int64_t first, int64_t rows, const float * sums) {
    constexpr int64_t ahead = 12;
    for (int64_t c = -ahead; c < n; c++) {
        if (c + ahead < n) {
            const auto * next = reinterpret_cast<const uint8_t *>(args.out[c0 + c + ahead] + args.first_row + first);
            for (int line = 0; line < tile::groups; line++) vec::prefetch(next + 64 * line);
        }
        if (c >= 0) write_out(args, c0 + c, first, rows, sums + c * panel_rows);
    }
}

// A tile may want the vectors of a block, rows of one part, in an order of its own.
template <class Tile> inline void arrange(vec::bytes (&w)[8]) {
    if constexpr (requires { Tile::arrange(w); }) Tile::arrange(w);
}

// Defined by the ISA file. Adds a panel's part to sums[c][tile::groups * 16] of n columns:
template <weight_type type> void multiply_panel(const panel & p, const column * cols, int64_t n, float * sums);
// The same for w[k][tile::groups * 16] in f32 and n <= tile::columns columns.
inline void multiply_floats(const float * w, int64_t k, const float * const * x, int n, float * sums);

template <weight_type type> [[gnu::noinline]] void expand_panel(const matmul_args & args, int64_t first_group, int64_t chunk, panel & p) {
    using t = traits<type>;
    const int64_t left = (args.k - chunk * packed_columns) / 32, last = packed_groups(args.num_rows) - 1;
    p.blocks = static_cast<int>(left < 8 ? left : 8);
    p.chunk = chunk;
    const int64_t rest = (last + 1 - first_group + 1) / 2 * 2;
    p.groups = static_cast<int>(rest < tile::groups ? rest : tile::groups);
    for (int g = 0; g < p.groups; g++) {
        // The missing half of a last pair is computed as a copy of the other and not written.
        const int64_t index = first_group + g < last ? first_group + g : last;
        const uint8_t * group = args.weights + index * args.stride_group;
        const uint8_t * from = group + packed_body_offset(t::f, args.k) + chunk * packed_chunk_bytes(t::f);
        expand_scales<type>(group + chunk * packed_header_chunk(t::f), from, p.blocks, p.scales[g]);
        const uint8_t * codes = from + packed_prefix(t::f, p.blocks);
        for (int b = 0; b < p.blocks; b++) {
            for (int part = 0; part < parts; part++) {
                vec::bytes w[8];
                expand_codes<type>(codes + b * t::f.code_bits * 64 + part * part_bytes, w);
                arrange<tile>(w);
                for (int v = 0; v < 8; v++) vec::store(p.codes[g][8 * b + v] + part * part_bytes, w[v]);
            }
            const uint8_t * next = codes + packed_chunk_bytes(t::f) + b * t::f.code_bits * 64;
            for (int line = 0; line < t::f.code_bits * 64; line += 64) vec::prefetch_stream(next + line);
        }
    }
}

template <weight_type type> [[gnu::noinline]] void many(const matmul_args & args) {
    const int64_t chunks = (args.k + packed_columns - 1) / packed_columns, groups = packed_groups(args.num_rows);
    panel p;
    column cols[columns_at_once];
    alignas(64) float sums[columns_at_once * panel_rows];
    for (int64_t c0 = 0; c0 < args.n; c0 += columns_at_once) {
        const int64_t n = args.n - c0 < columns_at_once ? args.n - c0 : columns_at_once;
        for (int64_t c = 0; c < n; c++) cols[c] = column_of<type>(args.acts[c0 + c], args.k);
        for (int64_t g = 0; g < groups; g += tile::groups) {
            for (int64_t i = 0; i < n * panel_rows; i++) sums[i] = 0;
            for (int64_t i = 0; i < chunks; i++) {
                expand_panel<type>(args, g, i, p);
                multiply_panel<type>(p, cols, n, sums);
            }
            const int64_t first = g * packed_rows, rows = args.num_rows - first < panel_rows ? args.num_rows - first : panel_rows;
            write_all_out(args, c0, n, first, rows, sums);
        }
    }
}

} // namespace
} // namespace alloy

#include "kernels/matmul/floating.h"

namespace alloy {
namespace {

// --- the kernel ---------------------------------------------------------------------------------------------------------------------------
template <weight_type type, int n> void few_columns(const matmul_args & args) {
    if constexpr (is_floating(format_of(type))) few_floating<type, n>(args);
    else few<type, n>(args);
}

template <weight_type type> void matmul(const matmul_args & args) {
    ALLOY_EXPECT(args.num_rows > 0 && args.k > 0 && args.k % (is_floating(format_of(type)) ? 1 : traits<type>::f.block) == 0);
    ALLOY_EXPECT(reinterpret_cast<uintptr_t>(args.weights) % 64 == 0 && args.stride_group >= packed_group_bytes(format_of(type), args.k));
    switch (args.n) {
        case 0: return;
        case 1: return few_columns<type, 1>(args);
        case 2: return few_columns<type, 2>(args);
        case 3: return few_columns<type, 3>(args);
        case 4: return few_columns<type, 4>(args);
        case 5: return few_columns<type, 5>(args);
        case 6: return few_columns<type, 6>(args);
        case 7: return few_columns<type, 7>(args);
        case 8: return few_columns<type, 8>(args);
        default: break;
    }
    if constexpr (is_floating(format_of(type))) many_floating<type>(args);
    else many<type>(args);
}

} // namespace
} // namespace alloy

// One of the kernels that matmul.h declares.
#define ALLOY_DEFINE_MATMUL(weights, isa) \
    void matmul_f32_##weights##_##isa(const matmul_args & args) { matmul<weight_type::weights>(args); }
