// The loops of family codec. An ISA file defines in an anonymous namespace `struct vec`: registers of 4 * vec::rows bytes, `floats` of 32 bits
// and `ints` of 32, 16 or 8, and then includes this file, so that each ISA compiles its own copy and no symbol of it leaves the object.
//
// A scale is searched by trying candidates: the error of a row is so rough a function of it that no descent finds the best.
// vec::rows rows are searched at once, each in its own 32-bit lanes with a scale of its own, so that no sum goes across a register.
// Numbers are 12-bit parts of the largest of their row, and a candidate is a 16-bit factor: the high half of the product says by how many half
// steps of the levels a number is above 0, and a byte holds that. All midpoints between levels are whole half steps.
#include "base/check.h"

namespace alloy {
namespace {

constexpr int64_t max_d = 576;
constexpr float numbers_range = 4095;
constexpr float half_steps = 65536 / numbers_range; // of a factor, for the largest number to have one

// --- codes of magnitudes ------------------------------------------------------------------------------------------------------------------
template <kv_codec codec> constexpr kv_levels levels_of = kv_levels_of(codec);

// Each 16 half steps have up to two midpoints. A code is `base` and one more for each midpoint that is passed: `first` and `second` are what
// comes before them, or 255, which nothing passes.
struct n_tables {
    alignas(16) uint8_t base[16], first[16], second[16], level[16];
    bool has_second;
};
template <kv_codec codec> constexpr n_tables make_tables() {
    n_tables t = {};
    for (int cell = 0, code = 0; cell < 16; cell++) {
        t.base[cell] = static_cast<uint8_t>(code);
        t.first[cell] = t.second[cell] = 255;
        for (; code + 1 < levels_of<codec>.count; code++) {
            const int midpoint = levels_of<codec>.positive[code] + levels_of<codec>.positive[code + 1];
            if (midpoint / 16 != cell) break;
            uint8_t & before = t.first[cell] == 255 ? t.first[cell] : t.second[cell];
            before = static_cast<uint8_t>(midpoint - 1);
            t.has_second |= t.second[cell] != 255;
        }
    }
    for (int i = 0; i < levels_of<codec>.count; i++) t.level[i] = static_cast<uint8_t>(levels_of<codec>.positive[i]);
    return t;
}
template <kv_codec codec> constexpr n_tables tables_of = make_tables<codec>();

template <kv_codec codec> struct coder {
    static constexpr const n_tables & tables = tables_of<codec>;
    vec::ints base = vec::table(tables.base), first = vec::table(tables.first), second = vec::table(tables.second), level = vec::table(tables.level);

    vec::ints codes(vec::ints half_steps) const {
        const vec::ints cell = vec::high_nibbles(half_steps);
        vec::ints code = vec::count(vec::look_up(base, cell), half_steps, vec::look_up(first, cell));
        if constexpr (tables.has_second) code = vec::count(code, half_steps, vec::look_up(second, cell));
        return code;
    }
    vec::ints levels(vec::ints codes) const { return vec::look_up(level, codes); }
};
// Levels 1, 3 .. 63: half a step is 1, and codes are left as levels.
template <> struct coder<kv_codec::z6> {
    vec::ints one = vec::all_bytes(1), most = vec::all_bytes(63);

    vec::ints codes(vec::ints half_steps) const { return vec::min_bytes(vec::either(half_steps, one), most); }
    vec::ints levels(vec::ints codes) const { return codes; }
};

// --- the search --------------------------------------------------------------------------------------------------------------------------------
// Rows side by side: register 0 of four elements has rows 0 and 1 of every four, register 1 the others, and packed into bytes four elements of
// a row are the 32-bit lane of the row.
struct group {
    alignas(64) int16_t numbers[max_d / 4][2][vec::rows / 4][2][4]; // magnitudes; codes in the end
    alignas(64) int8_t levels[max_d / 4][vec::rows][4];             // signs in bit 7, levels in the end
    alignas(64) float largest[vec::rows], rms[vec::rows];
    alignas(64) int32_t squares[vec::rows]; // of levels
};

// max|x| of a row, and its root mean square. NaN is larger than all.
struct extent {
    float largest, rms;
};
extent measure(const float * x, int64_t d) {
    vec::floats largest[2] = {vec::set1(0), vec::set1(0)}, squares[2] = {vec::set1(0), vec::set1(0)};
    for (int64_t i = 0; i < d; i += 2 * vec::rows) {
        for (int j = 0; j < 2; j++) {
            const vec::floats y = vec::load(x + i + j * vec::rows);
            largest[j] = vec::larger(largest[j], vec::abs(y));
            squares[j] = vec::fma(y, y, squares[j]);
        }
    }
    const float mean = vec::sum(vec::add(squares[0], squares[1])) / static_cast<float>(d);
    return {vec::largest(vec::larger(largest[0], largest[1])), __builtin_sqrtf(mean)};
}

// Scales of rows with a larger number are too large for f16, of rows with none as large as the smallest too small.
constexpr float largest_number = 1e10f, smallest_number = 1e-8f;

bool measure_row(group & g, int64_t r, const float * x, int64_t d) {
    const extent e = measure(x, d);
    const bool zero = e.largest < smallest_number;
    g.largest[r] = zero ? 1 : e.largest;
    g.rms[r] = zero ? 1 : e.rms;
    return e.largest <= largest_number; // not NaN either
}

void load_row(group & g, int64_t r, const float * x, int64_t d) {
    const vec::floats factor = vec::set1(numbers_range / g.largest[r]);
    alignas(64) int16_t words[max_d];
    for (int64_t i = 0; i < d; i += 2 * vec::rows) {
        vec::store(words + i, vec::words(vec::mul(vec::load(x + i), factor), vec::mul(vec::load(x + i + vec::rows), factor)));
    }
    for (int64_t i = 0; i < d / 4; i++) __builtin_memcpy(g.numbers[i][r / 2 % 2][r / 4][r % 2], words + 4 * i, 8);
}

void take_signs(group & g, int64_t d) {
    const vec::ints sign = vec::all_bytes(0x80);
    for (int64_t i = 0; i < d / 4; i++) {
        const vec::ints lo = vec::load_ints(g.numbers[i][0]), hi = vec::load_ints(g.numbers[i][1]);
        vec::store(g.levels[i], vec::both(vec::narrow_signed(lo, hi), sign));
        vec::store(g.numbers[i][0], vec::abs_words(lo));
        vec::store(g.numbers[i][1], vec::abs_words(hi));
    }
}

// Sums of number * level and of level^2 by row. use(i, codes, levels) for each register of them.
struct products {
    vec::ints xc, cc;
};
template <kv_codec codec, class Use>
[[gnu::always_inline]] inline products code_with(const group & g, int64_t d, vec::ints factors, const coder<codec> & code, Use use) {
    const vec::ints f_lo = vec::twice_low(factors), f_hi = vec::twice_high(factors);
    vec::ints xc_lo = vec::all_bytes(0), xc_hi = xc_lo, cc = xc_lo;
    for (int64_t i = 0; i < d / 4; i++) {
        const vec::ints lo = vec::load_ints(g.numbers[i][0]), hi = vec::load_ints(g.numbers[i][1]);
        const vec::ints codes = code.codes(vec::narrow(vec::mul_high(lo, f_lo), vec::mul_high(hi, f_hi)));
        const vec::ints levels = code.levels(codes);
        use(i, codes, levels);
        xc_lo = vec::add_products(xc_lo, lo, vec::widen_low(levels));
        xc_hi = vec::add_products(xc_hi, hi, vec::widen_high(levels));
        cc = vec::add_squares(cc, levels);
    }
    return {vec::add_pairs(xc_lo, xc_hi), cc};
}

template <kv_codec codec> void encode_group(group & g, int64_t d) {
    take_signs(g, d);
    constexpr bool is_z6 = codec == kv_codec::z6;
    const coder<codec> code;
    const vec::floats largest = vec::load(g.largest);
    const auto factors_of = [](vec::floats largest_over_scale) {
        return vec::factors(vec::mul(largest_over_scale, vec::set1(half_steps * (is_z6 ? 1 : 2))));
    };
    vec::floats best = vec::set1(0), best_at = best, best_fit = best;
    const auto attempt = [&](vec::floats largest_over_scale) {
        const products sums = code_with(g, d, factors_of(largest_over_scale), code, [](int64_t, vec::ints, vec::ints) {});
        const vec::floats xc = vec::to_floats(sums.xc), cc = vec::to_floats(sums.cc);
        const vec::floats explained = vec::div(vec::mul(xc, xc), cc); // the larger, the less squared error is left
        vec::take_larger(best, best_at, best_fit, explained, largest_over_scale, vec::div(cc, xc));
    };
    // First the outermost level for the largest number, which finds the codes of what was decoded. Others have to be better by more than rounding.
    attempt(vec::set1(is_z6 ? 63 : 127));
    best = vec::mul(best, vec::set1(1 + 0x1p-20f));
    if constexpr (is_z6) { // on, until what the largest number loses is about twice what all lose to start with
        for (int k = 1; k * k * 6 < d; k++) attempt(vec::set1(63 / (1 - 0.028f * static_cast<float>(k))));
    } else {
        // Of n3 and n4 every second one and those beside the best will do. Without the others a tenth of the rows of n5 would lose 2 % and more.
        constexpr int step = codec == kv_codec::n5 ? 1 : 2;
        const vec::floats base = vec::div(vec::mul(largest, vec::set1(127 / static_cast<float>(levels_of<codec>.outermost))), vec::load(g.rms));
        for (int k = -6; k <= 10; k += step) attempt(vec::mul(base, vec::set1(1 / (1 + 0.04f * static_cast<float>(k)))));
        const vec::floats coarse = best_at;
        for (int k = -1; k <= 1 && step == 2; k += 2) attempt(vec::mul(coarse, vec::set1(1 + 0.04f * static_cast<float>(k))));
    }
    attempt(vec::mul(best_fit, vec::set1(numbers_range))); // as least squares would have it
    const products sums = code_with(g, d, factors_of(best_at), code, [&](int64_t i, vec::ints codes, vec::ints levels) {
        const vec::ints signs = vec::load_ints(g.levels[i]);
        vec::store(g.numbers[i], vec::either(codes, signs));
        vec::store(g.levels[i], vec::with_sign(levels, signs));
    });
    vec::store(g.squares, sums.cc);
}

// --- bytes -----------------------------------------------------------------------------------------------------------------------------------
uint64_t load_64(const uint8_t * p) {
    uint64_t x;
    __builtin_memcpy(&x, p, 8);
    return x;
}
void store_64(uint8_t * p, uint64_t x) { __builtin_memcpy(p, &x, 8); }
constexpr uint64_t each_byte = 0x0101010101010101;

// 32 codes, sign in bit 7, to the bytes of formats/kv_codec.h.
template <kv_codec codec> void pack_32(const uint8_t * codes, uint8_t * out) {
    uint64_t c[4], signs = 0;
    for (int i = 0; i < 4; i++) {
        c[i] = load_64(codes + 8 * i);
        const uint64_t sign = c[i] >> 7 & each_byte;
        signs |= (sign * 0x0102040810204080 >> 56) << 8 * i;
        if (codec == kv_codec::z6) c[i] = ((c[i] >> 1 & 31 * each_byte) ^ sign * 31) | (sign ^ each_byte) * 32;
        if (codec == kv_codec::n4) c[i] = (c[i] & 7 * each_byte) | sign * 8;
    }
    if (codec != kv_codec::n3) {
        for (int i = 0; i < 2; i++) store_64(out + 8 * i, (c[i] & 15 * each_byte) | (c[i + 2] & 15 * each_byte) << 4);
        out += 16;
    }
    if (codec == kv_codec::n3 || codec == kv_codec::z6) {
        uint64_t pairs = 0;
        for (int i = 0; i < 4; i++) pairs |= (c[i] >> (codec == kv_codec::z6 ? 4 : 0) & 3 * each_byte) << 2 * i;
        store_64(out, pairs);
        out += 8;
    }
    const auto last = static_cast<uint32_t>(signs);
    if (codec == kv_codec::n3 || codec == kv_codec::n5) __builtin_memcpy(out, &last, 4);
}

// One row of a group: its bytes to `out`, its scale.
template <kv_codec codec> float store_row(const group & g, int64_t r, const float * x, int64_t d, uint8_t * out) {
    vec::floats xc = vec::set1(0);
    for (int64_t i = 0; i < d; i += 32) {
        alignas(32) uint8_t codes[32];
        alignas(32) int8_t levels[32];
        for (int64_t j = 0; j < 8; j++) {
            __builtin_memcpy(codes + 4 * j, reinterpret_cast<const uint8_t *>(g.numbers[i / 4 + j]) + 4 * r, 4);
            __builtin_memcpy(levels + 4 * j, g.levels[i / 4 + j][r], 4);
        }
        pack_32<codec>(codes, out + kv_codec_row_bytes(codec, i));
        for (int64_t j = 0; j < 32; j += vec::rows) xc = vec::fma(vec::load(x + i + j), vec::from_bytes(levels + j), xc);
    }
    return vec::sum(xc) / static_cast<float>(g.squares[r]);
}

// The stored scale. False: too large for f16. Codes of a scale of 0 are 0.
bool store_scale(const encode_args & args, int64_t cell, float scale, int64_t row_bytes) {
    const uint16_t half = vec::to_half(scale > 0 ? scale : 0);
    __builtin_memcpy(args.page + kv_page_cells * row_bytes + 2 * cell, &half, 2);
    if (half == 0) __builtin_memset(args.page + cell * row_bytes, 0, static_cast<size_t>(row_bytes));
    return half < 0x7C00;
}

const float * row_of(const encode_args & args, int64_t cell) {
    return reinterpret_cast<const float *>(reinterpret_cast<const char *>(args.rows) + cell * args.stride);
}

template <kv_codec codec> bool encode(const encode_args & args) {
    ALLOY_EXPECT(args.d > 0 && args.d <= max_d && kv_codec_fits(args.d));
    const int64_t d = args.d, row_bytes = kv_codec_row_bytes(codec, d);
    group g;
    for (int64_t first = 0; first < kv_page_cells; first += vec::rows) {
        for (int64_t r = 0; r < vec::rows; r++) {
            if (!measure_row(g, r, row_of(args, first + r), d)) return false;
        }
        for (int64_t r = 0; r < vec::rows; r++) load_row(g, r, row_of(args, first + r), d);
        encode_group<codec>(g, d);
        for (int64_t r = 0; r < vec::rows; r++) {
            const int64_t cell = first + r;
            const float scale = store_row<codec>(g, r, row_of(args, cell), d, args.page + cell * row_bytes);
            if (!store_scale(args, cell, scale, row_bytes)) return false;
        }
    }
    return true;
}

// Rows one after another: their scale needs no search.
bool encode_i8(const encode_args & args) {
    ALLOY_EXPECT(args.d > 0 && args.d <= max_d && kv_codec_fits(args.d));
    const int64_t d = args.d;
    float largest[kv_page_cells]; // of all rows first: from the numbers of a row to its factor is a long chain
    for (int64_t cell = 0; cell < kv_page_cells; cell++) {
        largest[cell] = measure(row_of(args, cell), d).largest;
        if (!(largest[cell] <= largest_number)) return false; // NaN too
    }
    for (int64_t cell = 0; cell < kv_page_cells; cell++) {
        const float * x = row_of(args, cell);
        const bool zero = largest[cell] < smallest_number;
        const vec::floats factor = vec::set1(zero ? 0 : 127 / largest[cell]);
        vec::floats xc[2] = {vec::set1(0), vec::set1(0)}, cc[2] = {vec::set1(0), vec::set1(0)};
        auto * out = args.page + cell * d;
        for (int64_t i = 0; i < d; i += 2 * vec::rows) {
            vec::floats c[2];
            for (int j = 0; j < 2; j++) {
                const vec::floats y = vec::load(x + i + j * vec::rows);
                c[j] = vec::round(vec::mul(y, factor));
                xc[j] = vec::fma(y, c[j], xc[j]);
                cc[j] = vec::fma(c[j], c[j], cc[j]);
            }
            vec::store_bytes(out + i, vec::words(c[0], c[1]));
        }
        const float scale = zero ? 0 : vec::sum(vec::add(xc[0], xc[1])) / vec::sum(vec::add(cc[0], cc[1]));
        if (!store_scale(args, cell, scale, d)) return false;
    }
    return true;
}

} // namespace
} // namespace alloy

// The kernels that codec.h declares, for one ISA.
#define ALLOY_DEFINE_CODEC(isa)                                                                         \
    bool encode_i8_##isa(const encode_args & args) { return encode_i8(args); }                          \
    bool encode_z6_##isa(const encode_args & args) { return encode<kv_codec::z6>(args); }               \
    bool encode_n5_##isa(const encode_args & args) { return encode<kv_codec::n5>(args); }               \
    bool encode_n4_##isa(const encode_args & args) { return encode<kv_codec::n4>(args); }               \
    bool encode_n3_##isa(const encode_args & args) { return encode<kv_codec::n3>(args); }
