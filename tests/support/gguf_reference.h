// What a GGUF weight is worth, element by element in double precision, written from the format's description and apart from
// formats/packed.cpp: the oracle of everything that reads weights.
#pragma once
#include "formats/packed.h"
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

namespace alloy::test {

inline double half_value(const uint8_t * p) {
    const int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const double sign = bits & 0x8000 ? -1 : 1;
    if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
    return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
}

// Element i of a row of GGUF blocks.
inline double gguf_value(weight_type type, const uint8_t * row, int64_t i) {
    static constexpr int iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    static constexpr double e2m1[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    const weight_format & f = format_of(type);
    const uint8_t * p = row + i / f.block * f.block_bytes;
    const int e = static_cast<int>(i % f.block);
    auto nibble = [&](const uint8_t * qs) { return e % 32 < 16 ? qs[e % 16] & 15 : qs[e % 16] >> 4; };        // blocks of 32
    auto bit_32 = [&](const uint8_t * qh) { return qh[e / 8] >> (e % 8) & 1; };
    auto nibble_k = [&](const uint8_t * qs) { return qs[e / 64 * 32 + e % 32] >> (e % 64 / 32 * 4) & 15; };     // Q4_K, Q5_K
    auto pair_k = [&](const uint8_t * qs) { return qs[e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3; };      // Q2_K, Q3_K, Q6_K
    auto scale_and_minimum = [&](const uint8_t * q, int & scale, int & minimum) {
        const int j = e / 32;
        scale = j < 4 ? q[j] & 63 : (q[j + 4] & 15) | q[j - 4] >> 6 << 4;
        minimum = j < 4 ? q[j + 4] & 63 : q[j + 4] >> 4 | q[j] >> 6 << 4;
    };
    int scale, minimum;
    switch (type) {
        case weight_type::q4_0: return half_value(p) * (nibble(p + 2) - 8);
        case weight_type::q4_1: return half_value(p) * nibble(p + 4) + half_value(p + 2);
        case weight_type::q5_0: return half_value(p) * ((nibble(p + 6) | bit_32(p + 2) << 4) - 16);
        case weight_type::q5_1: return half_value(p) * (nibble(p + 8) | bit_32(p + 4) << 4) + half_value(p + 2);
        case weight_type::q8_0: return half_value(p) * static_cast<int8_t>(p[2 + e]);
        case weight_type::iq4_nl: return half_value(p) * iq4[nibble(p + 2)];
        case weight_type::mxfp4: {
            const int code = nibble(p + 1);
            return std::ldexp(code & 8 ? -e2m1[code & 7] : e2m1[code & 7], p[0] - 127);
        }
        case weight_type::q2_k:
            return half_value(p + 80) * (p[e / 16] & 15) * pair_k(p + 16) - half_value(p + 82) * (p[e / 16] >> 4);
        case weight_type::q3_k: {
            const int j = e / 16, low = p[96 + j % 8] >> (j / 8 * 4) & 15, high = p[104 + j % 4] >> (j / 4 * 2) & 3;
            const int code = pair_k(p + 32) - (p[e % 32] >> (e / 32) & 1 ? 0 : 4);
            return half_value(p + 108) * ((low | high << 4) - 32) * code;
        }
        case weight_type::q4_k:
            scale_and_minimum(p + 4, scale, minimum);
            return half_value(p) * scale * nibble_k(p + 16) - half_value(p + 2) * minimum;
        case weight_type::q5_k:
            scale_and_minimum(p + 4, scale, minimum);
            return half_value(p) * scale * (nibble_k(p + 48) | (p[16 + e % 32] >> (e / 32) & 1) << 4) - half_value(p + 2) * minimum;
        case weight_type::q6_k: {
            const int low = p[e / 128 * 64 + e % 64] >> (e % 128 / 64 * 4) & 15;
            return half_value(p + 208) * static_cast<int8_t>(p[192 + e / 16]) * ((low | pair_k(p + 128) << 4) - 32);
        }
        case weight_type::iq4_xs: {
            const int j = e / 32, low = p[4 + j / 2] >> (j % 2 * 4) & 15, high = (p[2] | p[3] << 8) >> (2 * j) & 3;
            return half_value(p) * ((low | high << 4) - 32) * iq4[nibble(p + 8 + 16 * j)];
        }
        case weight_type::f16: return half_value(row + 2 * i);
        case weight_type::bf16: {
            const uint32_t bits = static_cast<uint32_t>(row[2 * i] | row[2 * i + 1] << 8) << 16;
            float x;
            std::memcpy(&x, &bits, 4);
            return x;
        }
        case weight_type::f32: {
            float x;
            std::memcpy(&x, row + 4 * i, 4);
            return x;
        }
        case weight_type::count: break;
    }
    return NAN;
}

// The f16 numbers of a block: byte offsets, so that random bytes can be given scales of a sane size.
inline std::vector<int> gguf_halves(weight_type type) {
    switch (type) {
        case weight_type::q4_1:
        case weight_type::q5_1:
        case weight_type::q4_k:
        case weight_type::q5_k: return {0, 2};
        case weight_type::q2_k: return {80, 82};
        case weight_type::q3_k: return {108};
        case weight_type::q6_k: return {208};
        case weight_type::mxfp4: return {};
        default: return {0};
    }
}

inline uint16_t half_bits(double x) { // rounds down, below f16's normal range to 0; |x| < 65504
    if (std::fabs(x) < 0x1p-14) return 0;
    int exponent;
    const double m = std::frexp(std::fabs(x), &exponent);
    return static_cast<uint16_t>((x < 0 ? 0x8000 : 0) | (exponent + 14) << 10 | (static_cast<int>(m * 2048) & 1023));
}

inline int64_t gguf_row_bytes(weight_type type, int64_t k) { return k / format_of(type).block * format_of(type).block_bytes; }

// Any bit pattern in the codes and sub-scales; scales of size `size`, of both signs.
inline std::vector<uint8_t> random_gguf(weight_type type, int64_t k, int64_t rows, double size, std::mt19937_64 & engine) {
    const weight_format & f = format_of(type);
    // Not uniform_real_distribution: libstdc++ takes a logarithm for each number.
    auto uniform = [&](double low, double high) { return low + (high - low) * 0x1p-53 * static_cast<double>(engine() >> 11); };
    std::vector<uint8_t> bytes(static_cast<size_t>(gguf_row_bytes(type, k) * rows));
    if (is_floating(f)) {
        for (int64_t i = 0; i < k * rows; i++) {
            const auto x = static_cast<float>(size * uniform(-1, 1));
            uint32_t bits;
            std::memcpy(&bits, &x, 4);
            const auto b = static_cast<uint16_t>(bits >> 16), h = half_bits(x);
            if (type == weight_type::f32) std::memcpy(bytes.data() + 4 * i, &x, 4);
            else std::memcpy(bytes.data() + 2 * i, type == weight_type::bf16 ? &b : &h, 2);
        }
        return bytes;
    }
    for (uint8_t & b : bytes) b = static_cast<uint8_t>(engine());
    for (size_t block = 0; block < bytes.size(); block += static_cast<size_t>(f.block_bytes)) {
        for (int at : gguf_halves(type)) {
            const uint16_t h = half_bits(size * uniform(0.5, 1) * (uniform(-1, 1) < 0 ? -1 : 1));
            std::memcpy(bytes.data() + block + at, &h, 2);
        }
        if (type == weight_type::mxfp4) bytes[block] = static_cast<uint8_t>(120 + uniform(0, 8));
    }
    return bytes;
}

} // namespace alloy::test
