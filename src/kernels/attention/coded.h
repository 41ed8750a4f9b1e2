// Part of generic.h: few rows on sealed pages, for instruction sets with byte_dots, which multiply four pairs of bytes into a lane of sums.
// Levels are bytes by definition. Queries, and probabilities times the scales of values, are rounded to 16 bits of the largest in the row and
// taken as two bytes, 256 high + low: two products of bytes cost a quarter of one in f32, and levels need not become f32 first. Everything
// is a template over the instruction set, so that others need not define what is used here.
namespace alloy {
namespace {

constexpr int64_t coded_channels = 64; // that are decoded at a time
constexpr float largest_q16 = 114 * 256, largest_p16 = 65535; // attention_max_d products of q and levels stay below 2^31

struct byte_table {
    alignas(16) int8_t levels[16];
};
// Levels by nibble, or levels + 128 as bytes without a sign. Both kinds are negated alike: -(x + 128) is -x + 128 in a byte.
template <cell_type type> constexpr byte_table table_of(uint8_t offset) {
    const int8_t * levels = type == cell_type::n3 ? n3_levels : type == cell_type::n4 ? n4_levels : kv_levels_n5;
    byte_table table{};
    for (int i = 0; i < 16; i++) table.levels[i] = static_cast<int8_t>(static_cast<uint8_t>(levels[i]) ^ offset);
    return table;
}
template <cell_type type, uint8_t offset> constexpr byte_table levels_by_nibble = table_of<type>(offset);

// The levels of two groups of 32 codes, in the order of channels, plus `offset`, which is 0 or 128.
template <cell_type type, uint8_t offset, class vec> [[gnu::always_inline]] inline typename vec::codes levels64(const uint8_t * a, const uint8_t * b) {
    if constexpr (type == cell_type::i8) return vec::flip(vec::load_halves(a, b), offset);
    else if constexpr (type == cell_type::z6) return vec::odd_levels(vec::nibbles(a, b), vec::two_bits(a + 16, b + 16), offset);
    else if constexpr (type == cell_type::n3) return vec::negate_where(vec::look_up(levels_by_nibble<type, offset>.levels, vec::two_bits(a, b)), a + 8, b + 8);
    else if constexpr (type == cell_type::n4) return vec::look_up(levels_by_nibble<type, offset>.levels, vec::nibbles(a, b));
    else return vec::negate_where(vec::look_up(levels_by_nibble<type, offset>.levels, vec::nibbles(a, b)), a + 16, b + 16);
}

// Channels [first, first + 64) of a row, or the last 32.
inline int64_t channels_at(int64_t first, int64_t d) { return d - first < coded_channels ? d - first : coded_channels; }
// How far from the first group of these the second is; where there is none, the first is decoded twice.
template <cell_type type> inline int64_t second_group(int64_t channels) { return channels < coded_channels ? 0 : row_bytes<type>(32); }

// Moves on to the next row. Left to itself, the compiler keeps all multiples of a stride, in memory for want of registers.
[[gnu::always_inline]] inline void step(const uint8_t *& row, int64_t stride) {
    row += stride;
    asm("" : "+r"(row));
}

// Reads ahead what bytes [from, from + n) of the rows of 16 cells stand for, in the next block: a share of a page, with the last its scales.
template <class vec>
[[gnu::always_inline]] inline void prefetch_rows(const attention_ahead & next, int64_t c, int64_t row_bytes, int64_t from, int64_t n) {
    if (next.stride == row_bytes) {
        const uint8_t *at = next.data + block * from + c * n, *end = at + 16 * n;
        if (c + 16 == block && from + n == row_bytes) end += 2 * block;
        for (; at < end; at += 64) vec::prefetch(at);
    } else {
        for (int64_t t = c; t < c + 16; t++) prefetch_row({next.data + from, next.stride}, t, n);
    }
}

// --- scores ---------------------------------------------------------------------------------------------------------------------------
// Keys are not transposed to the end: a vector holds, in quarter t, channels [16 t + 4 i, + 4) of four cells. So of each 64 channels, and
// each i < 4, the four bytes of a query that meet a quarter stand in it four times.
struct coded_query {
    int8_t * bytes[2]; // high, low: [(d + 63) / 64][i][t][cell][4]; 0 beyond d
    int32_t * start;   // what takes the offset of levels away again
    float * unit;      // NaN where an element is NaN or infinite
};
inline coded_query coded_query_at(float * row, int64_t d) {
    const int64_t terms = 2 * ((d + 63) & -64);
    auto * bytes = reinterpret_cast<int8_t *>(row);
    return {{bytes, bytes + 2 * terms}, reinterpret_cast<int32_t *>(row + terms), row + terms + 1};
}

template <class vec> void quantize_query(const float * q, int64_t d, const coded_query & out) {
    reg largest = vec::zero(), finite = vec::zero();
    for (int64_t i = 0; i < d; i += 16) {
        const reg x = vec::load(q + i);
        largest = vec::max(largest, vec::abs(x));
        finite = vec::fma(x, vec::zero(), finite);
    }
    const float top = vec::largest(largest);
    *out.unit = vec::all_zero(finite) ? top / largest_q16 : __builtin_nanf("");
    const reg inverse = vec::set1(top > 0x1p-100f ? largest_q16 / top : 0);
    uint32_t start = 0; // wraps, as sums of products may on the way; what is left in the end does not
    for (int64_t first = 0; first < d; first += coded_channels) {
        reg x[4];
        for (int j = 0; j < 4; j++) x[j] = first + 16 * j < d ? vec::mul(vec::load(q + first + 16 * j), inverse) : vec::zero();
        typename vec::codes terms[2];
        vec::signed_terms(x, terms);
        for (int term = 0; term < 2; term++) {
            typename vec::codes spread[4];
            vec::spread_fours(terms[term], spread);
            for (int i = 0; i < 4; i++) vec::store_codes(out.bytes[term] + 4 * first + 64 * i, spread[i]);
        }
        start -= static_cast<uint32_t>(vec::key_offset * vec::sum_terms(terms));
    }
    *out.start = static_cast<int32_t>(start);
}

template <class vec> constexpr auto code_queries() {
    void (*code)(const float *, int64_t, int64_t, float *) = nullptr;
    if constexpr (vec::byte_dots) {
        code = [](const float * q, int64_t num_rows, int64_t d, float * codes) {
            for (int64_t r = 0; r < num_rows; r++) quantize_query<vec>(q + r * d, d, coded_query_at(codes + r * coded_query_floats(d), d));
        };
    }
    return code;
}

template <cell_type type, int R, class vec>
[[gnu::noinline]] void coded_score_rows(const float * rows, int64_t d, const uint8_t * k, const attention_ahead & next, float * s) {
    constexpr int G = 2; // fours of cells that share what is loaded of a query
    coded_query q[R];
    ALLOY_UNROLL for (int r = 0; r < R; r++) q[r] = coded_query_at(const_cast<float *>(rows) + r * coded_query_floats(d), d);
    const uint8_t * cells = k;
    const int64_t stride = row_bytes<type>(d);
    for (int64_t c = 0; c < block; c += 16) {
        typename vec::ints sums[R][4];
        prefetch_rows<vec>(next, c, stride, 0, stride);
        ALLOY_UNROLL for (int g0 = 0; g0 < 4; g0 += G) {
            typename vec::ints acc[G][R][2];
            ALLOY_UNROLL for (int r = 0; r < R; r++) {
                ALLOY_UNROLL for (int g = 0; g < G; g++) acc[g][r][0] = acc[g][r][1] = vec::set1_ints(0);
            }
            for (int64_t first = 0; first < d; first += coded_channels) {
                typename vec::codes x[G][4];
                const uint8_t * row = cells + row_bytes<type>(first);
                const int64_t second = second_group<type>(channels_at(first, d));
                ALLOY_UNROLL for (int g = 0; g < G; g++) {
                    ALLOY_UNROLL for (int t = 0; t < 4; t++, step(row, stride)) x[g][t] = levels64<type, vec::key_offset, vec>(row, row + second);
                    vec::transpose_fours(x[g]);
                }
                ALLOY_UNROLL for (int i = 0; i < 4; i++) {
                    ALLOY_UNROLL for (int r = 0; r < R; r++) {
                        ALLOY_UNROLL for (int term = 0; term < 2; term++) {
                            const typename vec::codes w = vec::load_codes(q[r].bytes[term] + 4 * first + 64 * i);
                            ALLOY_UNROLL for (int g = 0; g < G; g++) acc[g][r][term] = vec::dot_keys(acc[g][r][term], x[g][i], w);
                        }
                    }
                }
            }
            step(cells, 4 * G * stride);
            ALLOY_UNROLL for (int r = 0; r < R; r++) {
                ALLOY_UNROLL for (int g = 0; g < G; g++) sums[r][g0 + g] = vec::join_terms(acc[g][r][0], acc[g][r][1]);
            }
        }
        const reg scales = vec::from_halves(k + block * stride + 2 * c);
        ALLOY_UNROLL for (int r = 0; r < R; r++) {
            const reg x = vec::to_floats(vec::add_ints(vec::sum_quarters(sums[r]), vec::set1_ints(*q[r].start)));
            vec::store(s + r * block + c, vec::mul(vec::mul(x, vec::set1(*q[r].unit)), scales));
        }
    }
}

template <cell_type type, class vec>
void coded_scores(const float * q, int64_t num_rows, int64_t d, const uint8_t * k, const attention_ahead & next, float * s) {
    for_rows<4>(num_rows, [&]<int R>(int64_t r) {
        coded_score_rows<type, R, vec>(q + r * coded_query_floats(d), d, k, next, s + r * block);
    });
}

// --- values ---------------------------------------------------------------------------------------------------------------------------
// p of one row times scales, as codes[high, low][cell]; returns what a unit is worth.
template <class vec> inline float quantize_p16(const float * p, const reg (&scales)[block_regs], uint8_t (&codes)[2][block]) {
    reg x[block_regs], finite = vec::zero();
    ALLOY_UNROLL for (int i = 0; i < block_regs; i++) {
        x[i] = vec::mul(vec::load(p + 16 * i), scales[i]);
        finite = vec::fma(x[i], vec::zero(), finite);
    }
    const float top = largest_of(x);
    const reg inverse = vec::set1(top > 0x1p-100f ? largest_p16 / top : 0);
    ALLOY_UNROLL for (int i = 0; i < block_regs; i++) x[i] = vec::mul(x[i], inverse);
    vec::store_unsigned_terms(codes[0], codes[1], x);
    return vec::all_zero(finite) ? top / largest_p16 : __builtin_nanf("");
}

// 64 or 32 channels of all cells; v and o at the first of them. Of each four cells, `interleave` gives four vectors. Sums of all
// four for more than two rows do not fit the registers: then two are used while they are decoded, and two from `panel`. Later rows find
// all of them there.
template <cell_type type, int R, bool decode, class vec>
[[gnu::noinline]] void coded_value_rows(const uint8_t (*codes)[2][block], const float * unit, const uint8_t * v, int64_t channels, int64_t d,
                                        const attention_ahead & next, int64_t from, int8_t * panel, bool keep, const float * alpha, float * o) {
    constexpr int J = R <= 2 ? 4 : 2;
    const int64_t stride = row_bytes<type>(d);
    reg sums[R][4];
    ALLOY_UNROLL for (int j0 = 0; j0 < 4; j0 += J) {
        typename vec::ints acc[R][2][J];
        ALLOY_UNROLL for (int r = 0; r < R; r++) {
            ALLOY_UNROLL for (int j = 0; j < J; j++) acc[r][0][j] = acc[r][1][j] = vec::set1_ints(0);
        }
        const uint8_t * row = v;
        for (int64_t c = 0; c < block; c += 4) {
            typename vec::codes x[4];
            if (decode && j0 == 0) {
                if (c % 16 == 0) prefetch_rows<vec>(next, c, stride, from, row_bytes<type>(channels));
                ALLOY_UNROLL for (int t = 0; t < 4; t++, step(row, stride)) x[t] = levels64<type, 0, vec>(row, row + second_group<type>(channels));
                vec::interleave(x);
                ALLOY_UNROLL for (int j = 0; j < 4; j++) {
                    if (j >= J || keep) vec::store_codes(panel + 64 * (c + j), x[j]);
                }
            } else {
                ALLOY_UNROLL for (int j = 0; j < J; j++) x[j] = vec::load_codes(panel + 64 * (c + j0 + j));
            }
            ALLOY_UNROLL for (int r = 0; r < R; r++) {
                ALLOY_UNROLL for (int term = 0; term < 2; term++) {
                    const auto w = vec::load_four(codes[r][term] + c);
                    ALLOY_UNROLL for (int j = 0; j < J; j++) acc[r][term][j] = vec::dot_values(acc[r][term][j], w, x[j]);
                }
            }
        }
        ALLOY_UNROLL for (int r = 0; r < R; r++) {
            ALLOY_UNROLL for (int j = 0; j < J; j++) sums[r][j0 + j] = vec::to_floats(vec::join_terms(acc[r][0][j], acc[r][1][j]));
        }
    }
    ALLOY_UNROLL for (int r = 0; r < R; r++) {
        vec::transpose_quarters(sums[r]);
        const reg w = vec::set1(unit[r]), a = vec::set1(alpha[r]);
        ALLOY_UNROLL for (int j = 0; j < 4; j++) {
            float * out = o + r * d + 16 * j;
            if (16 * j < channels) vec::store(out, vec::fma(sums[r][j], w, vec::mul(vec::load(out), a)));
        }
    }
}

template <cell_type type, class vec>
void coded_values(const float * p, int64_t num_rows, int64_t d, const uint8_t * v, const attention_ahead & next, const float * alpha, float * o) {
    alignas(64) int8_t panel[block * coded_channels];
    alignas(64) uint8_t codes[attention_tile][2][block];
    float unit[attention_tile];
    reg scales[block_regs];
    load_scales<type>(v, d, scales);
    for (int64_t r = 0; r < num_rows; r++) unit[r] = quantize_p16<vec>(p + r * block, scales, codes[r]);
    for (int64_t first = 0; first < d; first += coded_channels) {
        for_rows<4>(num_rows, [&]<int R>(int64_t r) {
            const auto add = r == 0 ? coded_value_rows<type, R, true, vec> : coded_value_rows<type, R, false, vec>;
            add(codes + r, unit + r, v + row_bytes<type>(first), channels_at(first, d), d, next, row_bytes<type>(first), panel, num_rows > R, alpha + r,
                o + r * d + first);
        });
    }
}

} // namespace
} // namespace alloy
