#include "formats/kv_codec.h"

#include <math.h>
#include <string.h>

namespace alloy {
namespace {

// f16 of a number that is not negative, to nearest, ties to even.
uint16_t half_of(float x) {
    if (x < 0x1p-14f) return static_cast<uint16_t>(nearbyintf(x * 0x1p24f));
    if (x >= 65520) return 0x7C00;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return static_cast<uint16_t>((bits + 0xFFF + (bits >> 13 & 1)) / 0x2000 - (112 << 10));
}
float value_of(uint16_t half) {
    const int exponent = half >> 10, mantissa = half & 1023;
    return exponent == 0 ? ldexpf(static_cast<float>(mantissa), -24) : ldexpf(static_cast<float>(1024 + mantissa), exponent - 25);
}

// --- codes of one row ----------------------------------------------------------------------------------------------------------------------
int level_of(kv_codec codec, int code) {
    if (codec == kv_codec::i8) return static_cast<int8_t>(code);
    if (codec == kv_codec::z6) return 2 * code - 63;
    const int sign = 1 << (kv_codec_bits(codec) - 1), level = kv_levels_of(codec).positive[code & (sign - 1)];
    return code & sign ? -level : level;
}

int nearest_code(kv_codec codec, double x) { // x: over the scale
    if (codec == kv_codec::i8) return static_cast<uint8_t>(static_cast<int8_t>(nearbyint(fmax(-127, fmin(x, 127)))));
    if (codec == kv_codec::z6) return static_cast<int>(fmax(0, fmin(floor(x / 2) + 32, 63)));
    const int sign = 1 << (kv_codec_bits(codec) - 1);
    const int8_t * levels = kv_levels_of(codec).positive;
    int code = 0;
    while (code < sign - 1 && 2 * fabs(x) >= levels[code] + levels[code + 1]) code++;
    return x < 0 ? code | sign : code;
}

// What the codes nearest to x / scale reach with the scale of least squared error.
struct fit {
    double scale, error;
};
fit fit_of(kv_codec codec, const float * x, int64_t d, double scale) {
    double xx = 0, xc = 0, cc = 0;
    for (int64_t i = 0; i < d; i++) {
        const double y = x[i], c = level_of(codec, nearest_code(codec, y / scale));
        xx += y * y, xc += y * c, cc += c * c;
    }
    return {xc / cc, xx - xc * xc / cc};
}

// The scale that codes are chosen with, and the one that is stored. False: a number is not finite, or the scale too large for f16.
bool find_scale(kv_codec codec, const float * x, int64_t d, double & scale, uint16_t & stored) {
    double xx = 0, largest = 0;
    for (int64_t i = 0; i < d; i++) {
        if (!isfinite(x[i])) return false;
        xx += static_cast<double>(x[i]) * x[i];
        largest = fmax(largest, fabs(static_cast<double>(x[i])));
    }
    scale = 1, stored = 0;
    if (largest < 0x1p-100) return true; // far below what f16 holds

    // First the scale that has the outermost level for the largest number, which finds the codes of what was decoded. The others have to be
    // better by more than rounding.
    scale = largest / (codec == kv_codec::z6 ? 63 : 127);
    fit best = fit_of(codec, x, d, scale);
    const auto attempt = [&](double s) {
        const fit f = fit_of(codec, x, d, s);
        if (f.error < best.error - 0x1p-20 * xx) best = f, scale = s;
    };
    if (codec == kv_codec::z6) {
        for (int k = 1; k <= 24; k++) attempt(largest / 63 * (1 - 0.028 * k));
    } else if (codec != kv_codec::i8) {
        for (int k = -6; k <= 10; k++) attempt(sqrt(xx / static_cast<double>(d)) * (1 + 0.04 * k) * kv_levels_of(codec).outermost / 127);
    }
    stored = half_of(static_cast<float>(best.scale));
    return stored < 0x7C00;
}

// --- bits of 32 codes ------------------------------------------------------------------------------------------------------------------------
// `move(byte, shift, count, code, to)` for each part of a code: `count` bits from bit `shift` of byte `byte` are those of code `code` from bit `to`.
template <class Move> void each_part(kv_codec codec, Move move) {
    const int bits = kv_codec_bits(codec);
    const int low = bits == 8 ? 8 : bits == 3 ? 2 : 4;
    for (int i = 0; i < 32; i++) {
        if (low == 8) move(i, 0, 8, i, 0);
        if (low == 4) move(i % 16, i / 16 * 4, 4, i, 0);
        if (low == 2) move(i % 8, i / 8 * 2, 2, i, 0);
        if (bits == 6) move(16 + i % 8, i / 8 * 2, 2, i, 4);
        if (bits == 5) move(16 + i / 8, i % 8, 1, i, 4);
        if (bits == 3) move(8 + i / 8, i % 8, 1, i, 2);
    }
}

} // namespace

bool kv_codec_encode(kv_codec codec, const float * rows, int64_t d, uint8_t * page) {
    const int64_t row_bytes = kv_codec_row_bytes(codec, d);
    memset(page, 0, static_cast<size_t>(kv_page_cells * row_bytes));
    for (int64_t cell = 0; cell < kv_page_cells; cell++) {
        const float * x = rows + cell * d;
        double scale;
        uint16_t stored;
        if (!find_scale(codec, x, d, scale, stored)) return false;
        memcpy(page + kv_page_cells * row_bytes + 2 * cell, &stored, 2);
        for (int64_t i = 0; stored != 0 && i < d; i += 32) {
            int codes[32];
            for (int j = 0; j < 32; j++) codes[j] = nearest_code(codec, x[i + j] / scale);
            uint8_t * out = page + cell * row_bytes + kv_codec_row_bytes(codec, i);
            each_part(codec, [&](int byte, int shift, int count, int code, int to) {
                out[byte] = static_cast<uint8_t>(out[byte] | (codes[code] >> to & ((1 << count) - 1)) << shift);
            });
        }
    }
    return true;
}

void kv_codec_decode(kv_codec codec, const uint8_t * page, int64_t d, float * rows) {
    const int64_t row_bytes = kv_codec_row_bytes(codec, d);
    for (int64_t cell = 0; cell < kv_page_cells; cell++) {
        uint16_t scale;
        memcpy(&scale, page + kv_page_cells * row_bytes + 2 * cell, 2);
        for (int64_t i = 0; i < d; i += 32) {
            const uint8_t * in = page + cell * row_bytes + kv_codec_row_bytes(codec, i);
            int codes[32] = {};
            each_part(codec, [&](int byte, int shift, int count, int code, int to) {
                codes[code] |= (in[byte] >> shift & ((1 << count) - 1)) << to;
            });
            for (int j = 0; j < 32; j++) rows[cell * d + i + j] = value_of(scale) * static_cast<float>(level_of(codec, codes[j]));
        }
    }
}

} // namespace alloy
