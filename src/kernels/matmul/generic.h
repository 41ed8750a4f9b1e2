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
#include "formats/act_q8.h"

namespace alloy {
namespace {

constexpr int part_bytes = 4 * vec::rows;     // of one vector of codes
constexpr int parts = packed_rows / vec::rows; // of one group
constexpr int64_t prefetch_distance = 8192;   // in the stream of weights, into L2: into L1 it is 1.5x slower, 4 and 12 KiB 1.2x

// --- what a weight type means -----------------------------------------------------------------------------------------------------------
template <weight_type type> struct traits {
    static constexpr weight_format f = format_of(type);
    static constexpr bool k_quant = f.block == 256;
    static constexpr bool minima = f.supers == 2; // w = d s q + m, or d s q - dmin m
    static constexpr int sub = type == weight_type::q2_k || type == weight_type::q3_k || type == weight_type::q6_k ? 16 : 32;
    static constexpr int subs = packed_columns / sub; // of a chunk
    // Signed 8-bit values, from the file or a table; each ISA has its own way to multiply them.
    static constexpr bool is_signed = type == weight_type::q8_0 || type == weight_type::iq4_nl || type == weight_type::iq4_xs;
    // Expanded codes are below 2^bits.
    static constexpr int bits = is_signed ? 8 : type == weight_type::mxfp4 ? 5 : f.code_bits;
    static constexpr int zero = is_signed                                                   ? vec::zero_of_signed
                                : minima                                                    ? 0
                                : type == weight_type::q4_0                                 ? 8
                                : type == weight_type::q3_k                                 ? 4
                                : type == weight_type::q5_0 || type == weight_type::mxfp4   ? 16
                                                                                            : 32;
    static constexpr act_q8_layout acts = k_quant ? act_q8_256 : act_q8_32;
};

alignas(16) constexpr int8_t table_iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
// Twice the values of E2M1, plus 16.
alignas(16) constexpr int8_t table_mxfp4[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

// The codes of one block, vectors 0..7, rows of one part.
template <weight_type type> inline void expand_codes(const uint8_t * block, vec::bytes * w) {
    constexpr int code_bits = traits<type>::f.code_bits;
    if constexpr (code_bits == 8) {
        for (int v = 0; v < 8; v++) w[v] = vec::load(block + 64 * v);
    } else if constexpr (code_bits >= 4) {
        for (int v = 0; v < 4; v++) {
            const vec::bytes x = vec::load(block + 64 * v);
            w[v] = vec::mask<15>(x);
            w[v + 4] = vec::mask<15>(vec::template shift_right<4>(x));
        }
    }
    if constexpr (code_bits == 5) {
        const vec::bytes x = vec::load(block + 256);
        w[0] = vec::or_masked<16>(w[0], vec::template shift_left<4>(x));
        w[1] = vec::or_masked<16>(w[1], vec::template shift_left<3>(x));
        w[2] = vec::or_masked<16>(w[2], vec::template shift_left<2>(x));
        w[3] = vec::or_masked<16>(w[3], vec::template shift_left<1>(x));
        w[4] = vec::or_masked<16>(w[4], x);
        w[5] = vec::or_masked<16>(w[5], vec::template shift_right<1>(x));
        w[6] = vec::or_masked<16>(w[6], vec::template shift_right<2>(x));
        w[7] = vec::or_masked<16>(w[7], vec::template shift_right<3>(x));
    }
    if constexpr (code_bits == 6) {
        for (int h = 0; h < 2; h++) {
            const vec::bytes x = vec::load(block + 256 + 64 * h);
            w[4 * h] = vec::or_masked<48>(w[4 * h], vec::template shift_left<4>(x));
            w[4 * h + 1] = vec::or_masked<48>(w[4 * h + 1], vec::template shift_left<2>(x));
            w[4 * h + 2] = vec::or_masked<48>(w[4 * h + 2], x);
            w[4 * h + 3] = vec::or_masked<48>(w[4 * h + 3], vec::template shift_right<2>(x));
        }
    }
    if constexpr (code_bits <= 3) {
        for (int h = 0; h < 2; h++) {
            const vec::bytes x = vec::load(block + 64 * h);
            w[4 * h] = vec::mask<3>(x);
            w[4 * h + 1] = vec::mask<3>(vec::template shift_right<2>(x));
            w[4 * h + 2] = vec::mask<3>(vec::template shift_right<4>(x));
            w[4 * h + 3] = vec::mask<3>(vec::template shift_right<6>(x));
        }
    }
    if constexpr (code_bits == 3) {
        const vec::bytes x = vec::load(block + 128);
        w[0] = vec::or_masked<4>(w[0], vec::template shift_left<2>(x));
        w[1] = vec::or_masked<4>(w[1], vec::template shift_left<1>(x));
        w[2] = vec::or_masked<4>(w[2], x);
        w[3] = vec::or_masked<4>(w[3], vec::template shift_right<1>(x));
        w[4] = vec::or_masked<4>(w[4], vec::template shift_right<2>(x));
        w[5] = vec::or_masked<4>(w[5], vec::template shift_right<3>(x));
        w[6] = vec::or_masked<4>(w[6], vec::template shift_right<4>(x));
        w[7] = vec::or_masked<4>(w[7], vec::template shift_right<5>(x));
    }
    if constexpr (type == weight_type::mxfp4) {
        for (int v = 0; v < 8; v++) w[v] = vec::look_up(table_mxfp4, w[v]);
    } else if constexpr (traits<type>::is_signed && code_bits == 4) {
        for (int v = 0; v < 8; v++) w[v] = vec::from_signed(vec::look_up(table_iq4, w[v]));
    } else if constexpr (traits<type>::is_signed) {
        for (int v = 0; v < 8; v++) w[v] = vec::from_signed(w[v]);
    }
}

// Scales of the sub-blocks of one chunk as f32, and minima where the type has them: w = scale * (code - zero) + minimum.
struct chunk_scales {
    alignas(64) float scale[16][packed_rows];
    alignas(64) float minimum[16][packed_rows];
};

constexpr float minus_thirty_two = -32, minus_one = -1;

template <weight_type type> inline void expand_scales(const uint8_t * header, const uint8_t * chunk, int blocks, chunk_scales & out) {
    using t = traits<type>;
    if constexpr (type == weight_type::mxfp4) { // 2^(e - 128): half of E8M0, as the table holds twice the values
        for (int b = 0; b < blocks; b++) {
            for (int r = 0; r < packed_rows; r++) {
                const uint32_t e = chunk[16 * b + r];
                const uint32_t bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
                out.scale[b][r] = __builtin_bit_cast(float, bits);
            }
        }
    } else if constexpr (!t::k_quant) {
        for (int b = 0; b < blocks; b++) {
            vec::halves_to_floats(chunk + 32 * t::f.supers * b, out.scale[b]);
            if constexpr (t::minima) vec::halves_to_floats(chunk + 64 * b + 32, out.minimum[b]);
        }
    } else {
        alignas(64) float d[packed_rows], dmin[packed_rows];
        vec::halves_to_floats(header, d);
        if constexpr (t::minima) vec::halves_to_floats(header + 32, dmin);
        // The sub-scales of all rows as bytes [16][16], then as floats.
        alignas(64) uint8_t subs[16][packed_rows];
        if constexpr (t::f.subs == sub_scales::bytes_16) {
            for (int i = 0; i < 256; i += part_bytes) {
                const vec::bytes x = vec::load(chunk + i);
                vec::store(&subs[0][i], type == weight_type::q2_k ? vec::mask<15>(x) : x);
            }
        } else if constexpr (t::f.subs == sub_scales::six_bits_16) {
            for (int i = 0; i < 64; i += part_bytes) {
                const vec::bytes low = vec::load(chunk + i), next = vec::load(chunk + 64 + i), high = vec::load(chunk + 128 + i);
                vec::store(&subs[0][i], vec::or_masked<48>(vec::mask<15>(low), vec::template shift_left<4>(high)));
                vec::store(&subs[4][i], vec::or_masked<48>(vec::mask<15>(vec::template shift_right<4>(low)), vec::template shift_left<2>(high)));
                vec::store(&subs[8][i], vec::or_masked<48>(vec::mask<15>(next), high));
                vec::store(&subs[12][i], vec::or_masked<48>(vec::mask<15>(vec::template shift_right<4>(next)), vec::template shift_right<2>(high)));
            }
        } else { // six_bits_8: eight rows a word
            for (int j = 0; j < 8; j++) {
                for (int r = 0; r < packed_rows; r += 8) {
                    uint64_t low, high;
                    __builtin_memcpy(&low, chunk + 16 * (j % 4) + r, 8);
                    __builtin_memcpy(&high, header + 32 + 16 * (j % 2) + r, 8);
                    const uint64_t six = (low >> (j / 4 * 4) & 0x0F0F0F0F0F0F0F0F) | (high >> (j / 2 * 2) & 0x0303030303030303) << 4;
                    __builtin_memcpy(&subs[j][r], &six, 8);
                }
            }
        }
        for (int p = 0; p < packed_rows; p += vec::rows) {
            const vec::floats d_part = vec::load_floats(d + p);
            // d * (x - 32) with one rounding
            const vec::floats minus_32 = vec::mul(d_part, vec::broadcast(&minus_thirty_two));
            for (int j = 0; j < t::subs; j++) {
                vec::floats scale;
                if constexpr (type == weight_type::q6_k) scale = vec::mul(d_part, vec::signed_bytes_to_floats(&subs[j][p]));
                else if constexpr (t::minima) scale = vec::mul(d_part, vec::bytes_to_floats(&subs[j][p]));
                else scale = vec::fma(d_part, vec::bytes_to_floats(&subs[j][p]), minus_32);
                vec::store_floats(out.scale[j] + p, scale);
            }
            if constexpr (t::minima) {
                if constexpr (type == weight_type::q2_k) {
                    for (int i = 0; i < 16; i++) {
                        for (int r = p; r < p + vec::rows; r++) subs[i][r] = chunk[16 * i + r] >> 4;
                    }
                }
                const vec::floats minus_dmin = vec::mul(vec::load_floats(dmin + p), vec::broadcast(&minus_one));
                for (int j = 0; j < t::subs; j++) {
                    const uint8_t * minima = subs[type == weight_type::q2_k ? j : 8 + j] + p;
                    vec::store_floats(out.minimum[j] + p, vec::mul(minus_dmin, vec::bytes_to_floats(minima)));
                }
            }
        }
    }
}

// --- activations --------------------------------------------------------------------------------------------------------------------------
struct column {
    const int8_t * codes;
    const float * scales;
    const int16_t * sums;
};

template <weight_type type> inline column column_of(const void * row, int64_t k) {
    const auto * bytes = static_cast<const uint8_t *>(row);
    return {reinterpret_cast<const int8_t *>(bytes), reinterpret_cast<const float *>(bytes + act_q8_scales_offset(k)),
            reinterpret_cast<const int16_t *>(bytes + act_q8_sums_offset(traits<type>::acts, k))};
}

// What each sub-block of a chunk adds for one column: the integer sums start at -zero * (sum of codes), and minima are multiplied
// with the sum of codes (times the scale, where it belongs to the block of 32).
union sub_start {
    int32_t from;
    float times_minimum;
};

template <weight_type type> inline void fill_starts(const column & col, int64_t chunk, sub_start * out) {
    using t = traits<type>;
    const int16_t * sums = col.sums + chunk * (packed_columns / t::acts.group);
    for (int j = 0; j < t::subs; j++) {
        const int sum = t::k_quant && t::sub == 32 ? sums[2 * j] + sums[2 * j + 1] : sums[j];
        if constexpr (!t::minima) out[j].from = -t::zero * sum;
        else if constexpr (t::k_quant) out[j].times_minimum = static_cast<float>(sum);
        else out[j].times_minimum = static_cast<float>(sum) * col.scales[chunk * 8 + j];
    }
}

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
template <weight_type type, int n> [[gnu::noinline]] void few(const matmul_args & args, int64_t first_column) {
    using t = traits<type>;
    constexpr int block_bytes = t::f.code_bits * 64;
    column cols[n];
    for (int c = 0; c < n; c++) cols[c] = column_of<type>(args.acts[first_column + c], args.k);
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
            write_out(args, first_column + c, first, rows, sums[c]);
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
        if (c >= 0) write_out(args, c0 + c, first, rows, sums + c * tile::groups * packed_rows);
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

// --- floating weights ---------------------------------------------------------------------------------------------------------------------
// Two columns of k at once: [2] vectors of f32, rows of one part.
template <weight_type type> inline void load_pair(const uint8_t * pair, int part, vec::floats & w0, vec::floats & w1) {
    if constexpr (type == weight_type::f32) {
        w0 = vec::load_floats(reinterpret_cast<const float *>(pair) + part * vec::rows);
        w1 = vec::load_floats(reinterpret_cast<const float *>(pair) + packed_rows + part * vec::rows);
    } else if constexpr (type == weight_type::f16) {
        w0 = vec::load_halves(pair + 2 * part * vec::rows);
        w1 = vec::load_halves(pair + 32 + 2 * part * vec::rows);
    } else {
        vec::load_bf16_pairs(pair + part * part_bytes, w0, w1);
    }
}
template <weight_type type> constexpr int64_t pair_bytes = type == weight_type::f32 ? 128 : 64;

template <weight_type type, int n> [[gnu::noinline]] void few_floating(const matmul_args & args, int64_t first_column) {
    const float * x[n];
    for (int c = 0; c < n; c++) x[c] = static_cast<const float *>(args.acts[first_column + c]);
    const int64_t groups = packed_groups(args.num_rows), pairs = args.k / 2;
    constexpr int chains = n == 1 ? 4 : n < 4 ? 2 : 1; // of pairs, to cover the latency of fma
    for (int64_t g = 0; g < groups; g++) {
        const uint8_t * group = args.weights + g * args.stride_group;
        alignas(64) float sums[n][packed_rows];
        for (int p = 0; p < parts; p++) {
            vec::floats acc[n][2 * chains];
            for (int c = 0; c < n; c++)
                for (int i = 0; i < 2 * chains; i++) acc[c][i] = vec::zero();
            auto step = [&](int64_t q, int chain) {
                vec::floats w0, w1;
                load_pair<type>(group + q * pair_bytes<type>, p, w0, w1);
                for (int c = 0; c < n; c++) {
                    acc[c][2 * chain] = vec::fma(w0, vec::broadcast(x[c] + 2 * q), acc[c][2 * chain]);
                    acc[c][2 * chain + 1] = vec::fma(w1, vec::broadcast(x[c] + 2 * q + 1), acc[c][2 * chain + 1]);
                }
            };
            int64_t q = 0;
            for (; q < pairs / chains * chains; q += chains) {
                if (p == 0) {
                    for (int64_t line = 0; line < chains * pair_bytes<type>; line += 64) {
                        vec::prefetch_stream(group + q * pair_bytes<type> + prefetch_distance + line);
                    }
                }
                for (int chain = 0; chain < chains; chain++) step(q + chain, chain);
            }
            for (; q < pairs; q++) step(q, 0);
            if (args.k % 2 != 0) { // the second of the last pair does not exist: f16 and f32 end, bf16 is padded
                vec::floats w0, w1;
                if constexpr (type == weight_type::bf16) load_pair<type>(group + q * pair_bytes<type>, p, w0, w1);
                else if constexpr (type == weight_type::f16) w0 = vec::load_halves(group + q * 64 + 2 * p * vec::rows);
                else w0 = vec::load_floats(reinterpret_cast<const float *>(group + q * 128) + p * vec::rows);
                for (int c = 0; c < n; c++) acc[c][0] = vec::fma(w0, vec::broadcast(x[c] + 2 * q), acc[c][0]);
            }
            for (int c = 0; c < n; c++) {
                for (int i = 1; i < 2 * chains; i++) acc[c][0] = vec::add(acc[c][0], acc[c][i]);
                vec::store_floats(sums[c] + p * vec::rows, acc[c][0]);
            }
        }
        const int64_t first = g * packed_rows, rows = args.num_rows - first < packed_rows ? args.num_rows - first : packed_rows;
        for (int c = 0; c < n; c++) write_out(args, first_column + c, first, rows, sums[c]);
    }
}

template <weight_type type> [[gnu::noinline]] void many_floating(const matmul_args & args) {
    
    constexpr int64_t depth = 128; // columns of k in a panel: 16 KiB for 32 rows
    alignas(64) float p[depth][panel_rows];
    alignas(64) float sums[columns_at_once * panel_rows];
    const int64_t groups = packed_groups(args.num_rows);
    for (int64_t c0 = 0; c0 < args.n; c0 += columns_at_once) {
        const int64_t n = args.n - c0 < columns_at_once ? args.n - c0 : columns_at_once;
        for (int64_t g = 0; g < groups; g += tile::groups) {
            for (int64_t i = 0; i < n * panel_rows; i++) sums[i] = 0;
            for (int64_t k0 = 0; k0 < args.k; k0 += depth) {
                const int64_t k = args.k - k0 < depth ? args.k - k0 : depth;
                for (int h = 0; h < tile::groups; h++) {
                    const int64_t index = g + h < groups ? g + h : groups - 1;
                    const uint8_t * from = args.weights + index * args.stride_group + k0 / 2 * pair_bytes<type>;
                    for (int64_t i = 0; i < k; i += 2) {
                        for (int part = 0; part < parts; part++) {
                            const int at = h * packed_rows + part * vec::rows;
                            vec::floats w0, w1;
                            if (i + 1 < k || type == weight_type::bf16) {
                                load_pair<type>(from + i / 2 * pair_bytes<type>, part, w0, w1);
                            } else {
                                if constexpr (type == weight_type::f16) w0 = vec::load_halves(from + i * 32 + 2 * part * vec::rows);
                                else w0 = vec::load_floats(reinterpret_cast<const float *>(from + i * 64) + part * vec::rows);
                                w1 = vec::zero();
                            }
                            vec::store_floats(p[i] + at, w0);
                            if (i + 1 < k) vec::store_floats(p[i + 1] + at, w1);
                        }
                    }
                }
                for (int64_t c = 0; c < n; c += tile::columns) {
                    const float * x[tile::columns];
                    const int now = static_cast<int>(n - c < tile::columns ? n - c : tile::columns);
                    for (int i = 0; i < now; i++) x[i] = static_cast<const float *>(args.acts[c0 + c + i]) + k0;
                    multiply_floats(&p[0][0], k, x, now, sums + c * panel_rows);
                }
            }
            const int64_t first = g * packed_rows, rows = args.num_rows - first < panel_rows ? args.num_rows - first : panel_rows;
            write_all_out(args, c0, n, first, rows, sums);
        }
    }
}

// --- the kernel ---------------------------------------------------------------------------------------------------------------------------
constexpr int most_few = 8;

template <weight_type type, int n> void few_columns(const matmul_args & args) {
    if constexpr (is_floating(format_of(type))) few_floating<type, n>(args, 0);
    else few<type, n>(args, 0);
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

// The kernels that matmul.h declares, for one ISA; the includer has defined ALLOY_KERNEL for its own token.
#define ALLOY_DEFINE_MATMUL(weights, isa) \
    void matmul_f32_##weights##_##isa(const matmul_args & args) { matmul<weight_type::weights>(args); }
