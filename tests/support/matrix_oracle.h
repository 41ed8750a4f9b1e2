// What products of GGUF matrices must be, in double precision, each with the error that whoever computes it may make.
#pragma once
#include "formats/act_q8.h"
#include "support/gguf_reference.h"

#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace alloy::test {

constexpr double half_ulp = 0x1p-24; // of an f32 in [1, 2)

// --- numbers ------------------------------------------------------------------------------------------------------------------------
enum class finiteness : uint8_t { finite, infinite, nan };

struct number {
    double value = 0;
    double bound = 0; // of |result - value|
    finiteness kind = finiteness::finite;

    bool accepts(float got) const {
        if (kind == finiteness::nan) return std::isnan(got);
        if (kind == finiteness::infinite) return !std::isfinite(got); // Inf times a zero is NaN
        return std::fabs(static_cast<double>(got) - value) <= bound;
    }
};

inline number exactly(float x) {
    return {x, 0, std::isnan(x) ? finiteness::nan : std::isinf(x) ? finiteness::infinite : finiteness::finite};
}

inline number sum_of(const number & a, const number & b) {
    return {a.value + b.value, a.bound + b.bound + 4 * half_ulp * (std::fabs(a.value) + std::fabs(b.value)), std::max(a.kind, b.kind)};
}

// A tensor's elements, i0 fastest.
struct numbers {
    int64_t ne[4] = {1, 1, 1, 1};
    std::vector<number> v;
    double rms = 1; // of deviation / bound over all elements, at most: where bounds are wide, errors shall still be few

    numbers() = default;
    numbers(int64_t n0, int64_t n1, int64_t n2, int64_t n3) : ne{n0, n1, n2, n3}, v(static_cast<size_t>(n0 * n1 * n2 * n3)) {}
    number * row(int64_t i1, int64_t i2, int64_t i3) { return v.data() + ne[0] * (i1 + ne[1] * (i2 + ne[2] * i3)); }
    const number * row(int64_t i1, int64_t i2, int64_t i3) const { return const_cast<numbers *>(this)->row(i1, i2, i3); }
};

// --- types --------------------------------------------------------------------------------------------------------------------------
struct matrix_type {
    const char * name;
    ggml_type host_type;
    weight_type packed; // count: no packed form
    int64_t block, block_bytes;
    int half_at; // without a packed form: where a block has its f16 scale

    bool can_pack() const { return packed != weight_type::count; }
    bool floating() const { return block == 1; }
    int64_t row_bytes(int64_t k) const { return k / block * block_bytes; }
};

constexpr matrix_type packed_types[] = {
#define ALLOY_WEIGHT(name, type, block, bytes, ...) {#name, static_cast<ggml_type>(type), weight_type::name, block, bytes, 0},
#include "formats/weights.inc"
#undef ALLOY_WEIGHT
};
constexpr int64_t num_packed_types = std::size(packed_types);

// Types that stay with the host. Any bits are a value of theirs.
constexpr matrix_type other_types[] = {
    {"iq2_xs", GGML_TYPE_IQ2_XS, weight_type::count, 256, 74, 0},
    {"iq3_s", GGML_TYPE_IQ3_S, weight_type::count, 256, 110, 0},
    {"tq2_0", GGML_TYPE_TQ2_0, weight_type::count, 256, 66, 64},
    {"q1_0", GGML_TYPE_Q1_0, weight_type::count, 128, 18, 0},
};
constexpr int64_t num_other_types = std::size(other_types);

// Random codes, scales of a sane size.
inline std::vector<uint8_t> random_rows(const matrix_type & type, int64_t k, int64_t rows, std::mt19937_64 & engine) {
    constexpr double size = 0.05;
    if (type.can_pack()) return random_gguf(type.packed, k, rows, size, engine);
    std::vector<uint8_t> bytes(static_cast<size_t>(type.row_bytes(k) * rows));
    for (uint8_t & b : bytes) b = static_cast<uint8_t>(engine());
    for (size_t block = 0; block < bytes.size(); block += static_cast<size_t>(type.block_bytes)) {
        const uint16_t scale = half_bits(size * std::uniform_real_distribution<double>(-1, 1)(engine));
        std::memcpy(bytes.data() + block + type.half_at, &scale, 2);
    }
    return bytes;
}

// --- matrices -----------------------------------------------------------------------------------------------------------------------
// What each element is worth, and the sum of the magnitudes of its parts: a type with minima adds and subtracts more than its values.
struct matrix {
    std::vector<double> value, size; // [rows][k]
};

struct code_bytes {
    int begin, end;
};
// Where a block of a type with minima has its codes; with zeros there, an element is worth its minimum.
inline code_bytes codes_beside_minima(weight_type type) {
    switch (type) {
        case weight_type::q4_1: return {4, 20};
        case weight_type::q5_1: return {4, 24};
        case weight_type::q2_k: return {16, 80};
        case weight_type::q4_k: return {16, 144};
        case weight_type::q5_k: return {16, 176};
        default: return {0, 0};
    }
}

inline matrix decode(const matrix_type & type, const uint8_t * bytes, int64_t k, int64_t rows) {
    matrix m;
    m.value.resize(static_cast<size_t>(k * rows));
    const auto row_bytes = static_cast<size_t>(type.row_bytes(k));
    const code_bytes codes = codes_beside_minima(type.packed);
    std::vector<uint8_t> minima(row_bytes);
    std::vector<float> floats(static_cast<size_t>(k));
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t * row = bytes + static_cast<size_t>(r) * row_bytes;
        double * value = m.value.data() + r * k;
        if (type.can_pack()) {
            for (int64_t i = 0; i < k; i++) value[i] = gguf_value(type.packed, row, i);
        } else {
            ggml_get_type_traits(type.host_type)->to_float(row, floats.data(), k);
            std::copy(floats.begin(), floats.end(), value);
        }
        if (codes.end == 0) {
            for (int64_t i = 0; i < k; i++) m.size.push_back(std::fabs(value[i]));
            continue;
        }
        std::memcpy(minima.data(), row, row_bytes);
        for (size_t b = 0; b < row_bytes; b += static_cast<size_t>(type.block_bytes)) {
            std::memset(minima.data() + b + codes.begin, 0, static_cast<size_t>(codes.end - codes.begin));
        }
        for (int64_t i = 0; i < k; i++) {
            const double minimum = gguf_value(type.packed, minima.data(), i);
            m.size.push_back(std::fabs(value[i] - minimum) + std::fabs(minimum));
        }
    }
    return m;
}

// --- products -----------------------------------------------------------------------------------------------------------------------
enum class computed_by : uint8_t { kernel, host };

// The activations of one column as the product reads them, and how far the reader may be off.
struct column {
    std::vector<double> value, slack;
    finiteness kind = finiteness::finite;
};

inline column column_of(const matrix_type & type, const number * x, int64_t k, computed_by who) {
    column c;
    std::vector<float> row(static_cast<size_t>(k));
    for (int64_t i = 0; i < k; i++) {
        row[static_cast<size_t>(i)] = static_cast<float>(x[i].value);
        c.kind = std::max(c.kind, x[i].kind);
    }
    const bool quantised = !type.floating();
    if (quantised && who == computed_by::kernel) { // exactly what the contract of family quantize says
        const act_q8_layout layout = format_of(type.packed).acts == activation::q8_32 ? act_q8_32 : act_q8_256;
        std::vector<uint8_t> codes(static_cast<size_t>(act_q8_row_size(layout, k)));
        act_q8_pack(layout, row.data(), k, codes.data());
        act_q8_unpack(layout, codes.data(), k, row.data());
    }
    c.value.assign(row.begin(), row.end());
    c.slack.assign(static_cast<size_t>(k), 0);
    if (who == computed_by::kernel || type.host_type == GGML_TYPE_F32) return c;
    // The host rounds to 8 bits a block of 32 to 256 with a scale in f16, or to the weights' own 16 bits.
    for (int64_t begin = 0; begin < k; begin += 256) {
        const int64_t end = std::min(k, begin + 256);
        double largest = 0;
        for (int64_t i = begin; i < end; i++) largest = std::max(largest, std::fabs(c.value[static_cast<size_t>(i)]));
        for (int64_t i = begin; i < end; i++) {
            const double a = std::fabs(c.value[static_cast<size_t>(i)]);
            c.slack[static_cast<size_t>(i)] = quantised ? 0.0041 * largest + 0x1p-10 * a : 0x1p-8 * a;
        }
    }
    return c;
}

// In eight sums, which a compiler may keep in vectors.
inline double dot(const double * a, const double * b, int64_t k) {
    double sums[8] = {};
    int64_t i = 0;
    for (; i + 8 <= k; i += 8)
        for (int64_t j = 0; j < 8; j++) sums[j] += a[i + j] * b[i + j];
    double sum = 0;
    for (; i < k; i++) sum += a[i] * b[i];
    for (const double s : sums) sum += s;
    return sum;
}

// Rows [first, first + rows) of `m` times a column.
inline void multiply(const matrix_type & type, const matrix & m, int64_t k, int64_t first, int64_t rows, const number * x, computed_by who,
                     number * out) {
    const column c = column_of(type, x, k, who);
    std::vector<double> magnitude;
    for (const double a : c.value) magnitude.push_back(std::fabs(a));
    const double depth = who == computed_by::host ? static_cast<double>(k) + 64
                         : type.floating()        ? static_cast<double>(k) / 4 + 8
                                                  : static_cast<double>(k) / static_cast<double>(type.block) + 24;
    for (int64_t r = 0; r < rows; r++) {
        const double *w = m.value.data() + (first + r) * k, *size = m.size.data() + (first + r) * k;
        const double slack = who == computed_by::host ? dot(size, c.slack.data(), k) : 0;
        out[r] = {dot(w, c.value.data(), k), slack + depth * half_ulp * dot(size, magnitude.data(), k) + 1e-37, c.kind};
    }
}

} // namespace alloy::test
