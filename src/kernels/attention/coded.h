// Part of generic.h: few rows on sealed pages, for instruction sets with byte_dots, which multiply four pairs of bytes into a lane of sums.
// Levels are bytes by definition. Queries, and probabilities times the scales of values, are rounded to 16 bits of the largest in the row and
// taken as two bytes, 256 high + low: two products of bytes cost a quarter of one in f32, and levels need not become f32 first. Everything
// is a template over the instruction set, so that others need not define what is used here.
namespace alloy {
namespace {

constexpr int coded_rows = 8;          // of queries that share the decoding of a key
constexpr int64_t coded_channels = 64; // that are decoded at a time
constexpr float largest_q16 = 127 * 256 + 127, largest_p16 = 65535;

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
    if constexpr (type == cell_type::i8) return vec::flip(vec::load_codes(a, b), offset);
    else if constexpr (type == cell_type::z6) return vec::odd_levels(vec::nibbles(a, b), vec::two_bits(a + 16, b + 16), offset);
    else if constexpr (type == cell_type::n3) return vec::negate_where(vec::look_up(levels_by_nibble<type, offset>.levels, vec::two_bits(a, b)), a + 8, b + 8);
    else if constexpr (type == cell_type::n4) return vec::look_up(levels_by_nibble<type, offset>.levels, vec::nibbles(a, b));
    else return vec::negate_where(vec::look_up(levels_by_nibble<type, offset>.levels, vec::nibbles(a, b)), a + 16, b + 16);
}

// The same of channels [first, first + 64) of a row; where only 32 are left, these twice.
template <cell_type type, uint8_t offset, class vec>
[[gnu::always_inline]] inline typename vec::codes levels_at(const uint8_t * row, int64_t first, int64_t d) {
    const uint8_t * a = row + row_bytes<type>(first);
    return levels64<type, offset, vec>(a, first + 32 < d ? a + row_bytes<type>(32) : a);
}

inline int64_t channels_at(int64_t first, int64_t d) { return d - first < coded_channels ? d - first : coded_channels; }

// Scales of a page lie behind what prefetch_row() covers.
template <class vec> inline void prefetch_scales(const attention_ahead & next) {
    for (int64_t line = 0; line < 2 * block; line += 64) vec::prefetch(next.data + block * next.stride + line);
}

// --- scores ---------------------------------------------------------------------------------------------------------------------------
template <int R> struct coded_queries {
    alignas(64) int8_t bytes[R][2][attention_max_d]; // high, low
    int32_t start[R][2];                             // what takes the offset of levels away again
    float unit[R];                                   // NaN where an element is NaN or infinite
};

template <int R, class vec> inline void quantize16(const float * q, int64_t d, coded_queries<R> & out) {
    for (int r = 0; r < R; r++, q += d) {
        reg largest = vec::zero(), finite = vec::zero();
        for (int64_t i = 0; i < d; i += 16) {
            const reg x = vec::load(q + i);
            largest = vec::max(largest, vec::abs(x));
            finite = vec::fma(x, vec::zero(), finite);
        }
        const float top = vec::largest(largest);
        out.unit[r] = vec::all_zero(finite) ? top / largest_q16 : __builtin_nanf("");
        const reg inverse = vec::set1(top > 0x1p-100f ? largest_q16 / top : 0);
        typename vec::ints sums[2] = {vec::set1_ints(0), vec::set1_ints(0)};
        for (int64_t i = 0; i < d; i += 16) {
            vec::store_terms(out.bytes[r][0] + i, out.bytes[r][1] + i, vec::mul(vec::load(q + i), inverse), sums);
        }
        for (int term = 0; term < 2; term++) out.start[r][term] = -vec::key_offset * vec::sum_ints(sums[term]);
    }
}

// Sixteen cells: quads[i] holds channels [4 i, 4 i + 4) of each.
template <cell_type type, class vec>
[[gnu::noinline]] void decode_keys(const uint8_t * rows, int64_t d, const attention_ahead & next, uint8_t * quads) {
    for (int64_t first = 0; first < d; first += coded_channels) {
        reg x[16];
        ALLOY_UNROLL for (int t = 0; t < 16; t++) {
            x[t] = vec::as_reg(levels_at<type, vec::key_offset, vec>(rows + t * row_bytes<type>(d), first, d));
        }
        vec::transpose16(x);
        const int64_t n = channels_at(first, d) / 4;
        ALLOY_UNROLL for (int i = 0; i < 16; i++) {
            if (i < n) vec::store(reinterpret_cast<float *>(quads + 16 * first + 64 * i), x[i]);
        }
    }
    for (int64_t t = 0; t < 16; t++) prefetch_row({next.data + t * next.stride, 0}, 0, row_bytes<type>(d));
}

template <int R, class vec> [[gnu::noinline]] void dot_coded_keys(const coded_queries<R> & q, int64_t d, const uint8_t * quads, reg scales, float * s) {
    constexpr int chains = R == 1 ? 2 : 1; // as many sums as a product takes cycles
    typename vec::ints acc[chains][R][2];
    ALLOY_UNROLL for (int r = 0; r < R; r++) {
        ALLOY_UNROLL for (int term = 0; term < 2; term++) {
            acc[0][r][term] = vec::set1_ints(q.start[r][term]);
            if constexpr (chains == 2) acc[1][r][term] = vec::set1_ints(0);
        }
    }
    for (int64_t i = 0; i < d; i += 8) {
        ALLOY_UNROLL for (int64_t half = 0; half < 2; half++) {
            const auto x = vec::load_keys(quads + 16 * i + 64 * half);
            ALLOY_UNROLL for (int r = 0; r < R; r++) {
                ALLOY_UNROLL for (int term = 0; term < 2; term++) {
                    auto & sum = acc[half % chains][r][term];
                    sum = vec::dot_keys(sum, x, vec::load_four(q.bytes[r][term] + i + 4 * half));
                }
            }
        }
    }
    ALLOY_UNROLL for (int r = 0; r < R; r++) {
        reg sums[2];
        ALLOY_UNROLL for (int term = 0; term < 2; term++) {
            sums[term] = vec::to_floats(acc[0][r][term]);
            if constexpr (chains == 2) sums[term] = vec::add(sums[term], vec::to_floats(acc[1][r][term]));
        }
        const reg x = vec::fma(sums[0], vec::set1(256), sums[1]);
        vec::store(s + r * block, vec::mul(vec::mul(x, vec::set1(q.unit[r])), scales));
    }
}

template <cell_type type, class vec>
void coded_scores(const float * q, int64_t num_rows, int64_t d, const uint8_t * k, const attention_ahead & next, float * s) {
    alignas(64) uint8_t quads[16 * attention_max_d];
    for_rows<coded_rows>(num_rows, [&]<int R>(int64_t r) {
        coded_queries<R> codes;
        quantize16<R, vec>(q + r * d, d, codes);
        for (int64_t c = 0; c < block; c += 16) {
            decode_keys<type, vec>(k + c * row_bytes<type>(d), d, {next.data + c * next.stride, next.stride}, quads);
            dot_coded_keys<R, vec>(codes, d, quads, vec::from_halves(k + block * row_bytes<type>(d) + 2 * c), s + r * block + c);
        }
    });
    prefetch_scales<vec>(next);
}

// --- values ---------------------------------------------------------------------------------------------------------------------------
// Sixteen times four cells, 64 channels: of each four cells 4 x 64 bytes as `interleave` leaves them, four cells in each lane.
template <cell_type type, class vec>
[[gnu::noinline]] void decode_values(const uint8_t * v, int64_t first, int64_t d, const attention_ahead & next, int8_t * panel) {
    for (int64_t c = 0; c < block; c += 4) {
        typename vec::codes x[4];
        ALLOY_UNROLL for (int64_t t = 0; t < 4; t++) {
            x[t] = levels_at<type, 0, vec>(v + (c + t) * row_bytes<type>(d), first, d);
            prefetch_row({next.data + row_bytes<type>(first), next.stride}, c + t, row_bytes<type>(channels_at(first, d)));
        }
        vec::interleave(x);
        ALLOY_UNROLL for (int64_t j = 0; j < 4; j++) vec::store_codes(panel + 64 * (c + j), x[j]);
    }
}

// p of one row times scales, as codes[high, low][cell]; returns what a unit is worth.
template <class vec> inline float quantize_p16(const float * p, const reg (&scales)[block_regs], uint8_t (&codes)[2][block]) {
    reg x[block_regs], finite = vec::zero();
    ALLOY_UNROLL for (int i = 0; i < block_regs; i++) {
        x[i] = vec::mul(vec::load(p + 16 * i), scales[i]);
        finite = vec::fma(x[i], vec::zero(), finite);
    }
    const float top = largest_of(x);
    const reg inverse = vec::set1(top > 0x1p-100f ? largest_p16 / top : 0);
    ALLOY_UNROLL for (int i = 0; i < block_regs; i++) vec::store_unsigned_terms(codes[0] + 16 * i, codes[1] + 16 * i, vec::mul(x[i], inverse));
    return vec::all_zero(finite) ? top / largest_p16 : __builtin_nanf("");
}

template <int R, class vec>
[[gnu::noinline]] void dot_coded_values(const uint8_t (*codes)[2][block], const float * unit, const int8_t * panel, int64_t vectors, int64_t d,
                                        const float * alpha, float * o) {
    constexpr int J = R <= 3 ? 4 : 2;
    reg sums[R][4];
    ALLOY_UNROLL for (int j0 = 0; j0 < 4; j0 += J) {
        typename vec::ints acc[R][2][J];
        ALLOY_UNROLL for (int r = 0; r < R; r++) {
            ALLOY_UNROLL for (int j = 0; j < J; j++) acc[r][0][j] = acc[r][1][j] = vec::set1_ints(0);
        }
        for (int64_t c = 0; c < block; c += 4) {
            typename vec::value_codes x[J];
            ALLOY_UNROLL for (int j = 0; j < J; j++) x[j] = vec::load_values(panel + 64 * (c + j0 + j));
            ALLOY_UNROLL for (int r = 0; r < R; r++) {
                ALLOY_UNROLL for (int term = 0; term < 2; term++) {
                    const auto w = vec::load_four(codes[r][term] + c);
                    ALLOY_UNROLL for (int j = 0; j < J; j++) acc[r][term][j] = vec::dot_values(acc[r][term][j], w, x[j]);
                }
            }
        }
        ALLOY_UNROLL for (int r = 0; r < R; r++) {
            ALLOY_UNROLL for (int j = 0; j < J; j++) {
                sums[r][j0 + j] = vec::fma(vec::to_floats(acc[r][0][j]), vec::set1(256), vec::to_floats(acc[r][1][j]));
            }
        }
    }
    ALLOY_UNROLL for (int r = 0; r < R; r++) {
        vec::transpose_quarters(sums[r]);
        const reg w = vec::set1(unit[r]), a = vec::set1(alpha[r]);
        ALLOY_UNROLL for (int j = 0; j < 4; j++) {
            float * out = o + r * d + 16 * j;
            if (j < vectors) vec::store(out, vec::fma(sums[r][j], w, vec::mul(vec::load(out), a)));
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
        decode_values<type, vec>(v, first, d, next, panel);
        for_rows<4>(num_rows, [&]<int R>(int64_t r) {
            dot_coded_values<R, vec>(codes + r, unit + r, panel, channels_at(first, d) / 16, d, alpha + r, o + r * d + first);
        });
    }
    prefetch_scales<vec>(next);
}

} // namespace
} // namespace alloy
