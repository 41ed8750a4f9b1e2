// Part of generic.h: what each weight type is worth. Codes and scales of packed.h expanded into vectors, activations found in their
// rows.
#include "formats/act_q8.h"

namespace alloy {
namespace {

constexpr int part_bytes = 4 * vec::rows;      // of one vector of codes
constexpr int parts = packed_rows / vec::rows; // of one group

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
                vec::store(subs[0] + i, type == weight_type::q2_k ? vec::mask<15>(x) : x);
            }
        } else if constexpr (t::f.subs == sub_scales::six_bits_16) {
            for (int i = 0; i < 64; i += part_bytes) {
                const vec::bytes low = vec::load(chunk + i), next = vec::load(chunk + 64 + i), high = vec::load(chunk + 128 + i);
                vec::store(subs[0] + i, vec::or_masked<48>(vec::mask<15>(low), vec::template shift_left<4>(high)));
                vec::store(subs[4] + i, vec::or_masked<48>(vec::mask<15>(vec::template shift_right<4>(low)), vec::template shift_left<2>(high)));
                vec::store(subs[8] + i, vec::or_masked<48>(vec::mask<15>(next), high));
                vec::store(subs[12] + i, vec::or_masked<48>(vec::mask<15>(vec::template shift_right<4>(next)), vec::template shift_right<2>(high)));
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

} // namespace
} // namespace alloy
