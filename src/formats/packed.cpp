#include "formats/packed.h"

#include <string.h>

namespace alloy {
namespace {

// 256 columns of one row, taken apart: what GGUF blocks and packed chunks both hold, each in its own order.
struct row_chunk {
    uint8_t codes[256];    // raw, unsigned
    uint8_t subs[16];      // raw sub-scales
    uint16_t supers[2][8]; // f16 bits by block of 32, or [s][0] for K-quants
};

uint16_t load_16(const uint8_t * p) {
    uint16_t x;
    memcpy(&x, p, 2);
    return x;
}
void store_16(uint8_t * p, uint16_t x) { memcpy(p, &x, 2); }
uint32_t load_32(const uint8_t * p) {
    uint32_t x;
    memcpy(&x, p, 4);
    return x;
}
void store_32(uint8_t * p, uint32_t x) { memcpy(p, &x, 4); }
uint64_t load_64(const uint8_t * p) {
    uint64_t x;
    memcpy(&x, p, 8);
    return x;
}
void store_64(uint8_t * p, uint64_t x) { memcpy(p, &x, 8); }
constexpr uint64_t low_bits = 0x0101010101010101; // of eight bytes

// --- GGUF blocks <-> row_chunk -----------------------------------------------------------------------------------------------------------
// `io` is one of these two; each block layout below is thus written once and serves both directions.
struct reader {
    // Bits [shift, shift + bits) of a byte <-> bits [to, ..) of a code; a code's bits are visited from the lowest.
    static void bits(const uint8_t & packed, int shift, int count, uint8_t & code, int to) {
        const auto part = static_cast<uint8_t>((packed >> shift & ((1 << count) - 1)) << to);
        code = to == 0 ? part : static_cast<uint8_t>(code | part);
    }
    // The same for n bytes and n codes, eight at a time.
    static void run(const uint8_t * packed, int n, int shift, int count, uint8_t * codes, int to) {
        const uint64_t mask = low_bits * ((1u << count) - 1);
        for (int i = 0; i < n; i += 8) {
            const uint64_t part = (load_64(packed + i) >> shift & mask) << to;
            store_64(codes + i, to == 0 ? part : load_64(codes + i) | part);
        }
    }
    // Bit i of a byte <-> bit `to` of code i.
    static void bit_each(const uint8_t & packed, uint8_t * codes, int to) {
        const uint64_t spread = ((packed & 0x7Fu) * uint64_t{0x02040810204081} & low_bits) | static_cast<uint64_t>(packed >> 7) << 56;
        store_64(codes, load_64(codes) | spread << to);
    }
    static void half(const uint8_t * packed, uint16_t & x) { x = load_16(packed); }
};
struct writer {
    static void bits(uint8_t & packed, int shift, int count, const uint8_t & code, int to) {
        const auto part = static_cast<uint8_t>((code >> to & ((1 << count) - 1)) << shift);
        packed = static_cast<uint8_t>(packed | part); // the block starts as zeros
    }
    static void run(uint8_t * packed, int n, int shift, int count, const uint8_t * codes, int to) {
        const uint64_t mask = low_bits * ((1u << count) - 1);
        for (int i = 0; i < n; i += 8) store_64(packed + i, load_64(packed + i) | (load_64(codes + i) >> to & mask) << shift);
    }
    static void bit_each(uint8_t & packed, const uint8_t * codes, int to) {
        packed = static_cast<uint8_t>((load_64(codes) >> to & low_bits) * uint64_t{0x0102040810204080} >> 56);
    }
    static void half(uint8_t * packed, const uint16_t & x) { store_16(packed, x); }
};

// Codes of 32 columns: low nibbles are columns 0..15, high nibbles 16..31.
template <class io, class bytes> void nibbles_of_32(bytes * qs, auto * codes) {
    io::run(qs, 16, 0, 4, codes, 0);
    io::run(qs, 16, 4, 4, codes + 16, 0);
}
// Codes of 64 columns: low nibbles are columns 0..31, high nibbles 32..63.
template <class io, class bytes> void nibbles_of_64(bytes * qs, auto * codes) {
    io::run(qs, 32, 0, 4, codes, 0);
    io::run(qs, 32, 4, 4, codes + 32, 0);
}
template <class io, class bytes> void fifth_bits_of_32(bytes * qh, auto * codes) {
    for (int i = 0; i < 4; i++) io::bit_each(qh[i], codes + 8 * i, 4);
}
// Four 2-bit codes a byte, columns 32 apart: 128 columns in 32 bytes.
template <class io, class bytes> void pairs_of_128(bytes * qs, auto * codes, int to) {
    for (int j = 0; j < 4; j++) io::run(qs, 32, 2 * j, 2, codes + 32 * j, to);
}
// Q4_K, Q5_K: eight 6-bit scales, then eight 6-bit minima in 12 bytes.
template <class io, class bytes> void scales_and_minima(bytes * q, auto * subs) {
    for (int j = 0; j < 4; j++) {
        io::bits(q[j], 0, 6, subs[j], 0);
        io::bits(q[j + 4], 0, 6, subs[8 + j], 0);
        io::bits(q[j + 8], 0, 4, subs[4 + j], 0);
        io::bits(q[j], 6, 2, subs[4 + j], 4);
        io::bits(q[j + 8], 4, 4, subs[12 + j], 0);
        io::bits(q[j + 4], 6, 2, subs[12 + j], 4);
    }
}

template <class io, weight_type type> void gguf_block(auto * p, auto & c, int block) {
    auto * codes = c.codes + 32 * block;
    switch (type) {
        case weight_type::q4_0:
        case weight_type::iq4_nl:
            io::half(p, c.supers[0][block]);
            return nibbles_of_32<io>(p + 2, codes);
        case weight_type::q4_1:
            io::half(p, c.supers[0][block]);
            io::half(p + 2, c.supers[1][block]);
            return nibbles_of_32<io>(p + 4, codes);
        case weight_type::q5_0:
            io::half(p, c.supers[0][block]);
            nibbles_of_32<io>(p + 6, codes);
            return fifth_bits_of_32<io>(p + 2, codes);
        case weight_type::q5_1:
            io::half(p, c.supers[0][block]);
            io::half(p + 2, c.supers[1][block]);
            nibbles_of_32<io>(p + 8, codes);
            return fifth_bits_of_32<io>(p + 4, codes);
        case weight_type::q8_0:
            io::half(p, c.supers[0][block]);
            return io::run(p + 2, 32, 0, 8, codes, 0);
        case weight_type::mxfp4:
            io::bits(p[0], 0, 8, c.subs[block], 0);
            return nibbles_of_32<io>(p + 1, codes);
        case weight_type::q2_k:
            io::run(p, 16, 0, 8, c.subs, 0);
            for (int h = 0; h < 2; h++) pairs_of_128<io>(p + 16 + 32 * h, codes + 128 * h, 0);
            io::half(p + 80, c.supers[0][0]);
            return io::half(p + 82, c.supers[1][0]);
        case weight_type::q3_k:
            for (int h = 0; h < 2; h++) pairs_of_128<io>(p + 32 + 32 * h, codes + 128 * h, 0);
            for (int j = 0; j < 8; j++) io::run(p, 32, j, 1, codes + 32 * j, 2);
            for (int j = 0; j < 16; j++) {
                io::bits(p[96 + j % 8], j / 8 * 4, 4, c.subs[j], 0);
                io::bits(p[104 + j % 4], j / 4 * 2, 2, c.subs[j], 4);
            }
            return io::half(p + 108, c.supers[0][0]);
        case weight_type::q4_k:
            io::half(p, c.supers[0][0]);
            io::half(p + 2, c.supers[1][0]);
            scales_and_minima<io>(p + 4, c.subs);
            for (int g = 0; g < 4; g++) nibbles_of_64<io>(p + 16 + 32 * g, codes + 64 * g);
            return;
        case weight_type::q5_k:
            io::half(p, c.supers[0][0]);
            io::half(p + 2, c.supers[1][0]);
            scales_and_minima<io>(p + 4, c.subs);
            for (int g = 0; g < 4; g++) nibbles_of_64<io>(p + 48 + 32 * g, codes + 64 * g);
            for (int j = 0; j < 8; j++) io::run(p + 16, 32, j, 1, codes + 32 * j, 4);
            return;
        case weight_type::q6_k:
            for (int h = 0; h < 2; h++) {
                for (int j = 0; j < 4; j++) io::run(p + 64 * h + j % 2 * 32, 32, j / 2 * 4, 4, codes + 128 * h + 32 * j, 0);
                pairs_of_128<io>(p + 128 + 32 * h, codes + 128 * h, 4);
            }
            io::run(p + 192, 16, 0, 8, c.subs, 0);
            return io::half(p + 208, c.supers[0][0]);
        case weight_type::iq4_xs:
            io::half(p, c.supers[0][0]);
            for (int j = 0; j < 8; j++) {
                io::bits(p[4 + j / 2], j % 2 * 4, 4, c.subs[j], 0);
                io::bits(p[2 + j / 4], j % 4 * 2, 2, c.subs[j], 4);
                nibbles_of_32<io>(p + 8 + 16 * j, codes + 32 * j);
            }
            return;
        default: return;
    }
}

// --- row_chunk <-> packed -----------------------------------------------------------------------------------------------------------------
// Four codes of one row are one 32-bit word, word v of a block lies in vector v.
struct to_packed {
    static void plane(uint8_t * block, const uint8_t * codes, int row, int bits, int shift, int vectors) {
        const uint32_t mask = 0x01010101u * ((1u << bits) - 1);
        const int a_word = 8 / vectors; // words of codes in one word of the plane
        for (int w = 0; w < vectors; w++) {
            uint32_t word = 0;
            for (int i = 0; i < a_word; i++) {
                const int v = bits == 4 ? w + 4 * i : a_word * w + i;
                word |= (load_32(codes + 4 * v) >> shift & mask) << (bits * i);
            }
            store_32(block + 64 * w + 4 * row, word);
        }
    }
    static void byte(uint8_t & packed, uint8_t & x) { packed = x; }
    // Bits 0..3 of two sub-scales, bits 4..5 of four.
    static void low_bits(uint8_t & packed, uint8_t & x, uint8_t & y) { packed = static_cast<uint8_t>((x & 15) | y << 4); }
    static void high_bits(uint8_t & packed, uint8_t * x, int stride) {
        packed = static_cast<uint8_t>(x[0] >> 4 | x[stride] >> 4 << 2 | x[2 * stride] >> 4 << 4 | x[3 * stride] >> 4 << 6);
    }
    static void half(uint8_t * packed, uint16_t & x) { store_16(packed, x); }
};
struct from_packed {
    static void plane(const uint8_t * block, uint8_t * codes, int row, int bits, int shift, int vectors) {
        const uint32_t mask = 0x01010101u * ((1u << bits) - 1);
        const int a_word = 8 / vectors;
        for (int w = 0; w < vectors; w++) {
            const uint32_t word = load_32(block + 64 * w + 4 * row);
            for (int i = 0; i < a_word; i++) {
                const int v = bits == 4 ? w + 4 * i : a_word * w + i;
                const uint32_t code = (word >> (bits * i) & mask) << shift;
                store_32(codes + 4 * v, shift == 0 ? code : load_32(codes + 4 * v) | code);
            }
        }
    }
    static void byte(const uint8_t & packed, uint8_t & x) { x = packed; }
    static void low_bits(const uint8_t & packed, uint8_t & x, uint8_t & y) {
        x = packed & 15;
        y = packed >> 4;
    }
    static void high_bits(const uint8_t & packed, uint8_t * x, int stride) { // after low_bits
        for (int i = 0; i < 4; i++) x[i * stride] = static_cast<uint8_t>(x[i * stride] | (packed >> (2 * i) & 3) << 4);
    }
    static void half(const uint8_t * packed, uint16_t & x) { x = load_16(packed); }
};

template <class io, int code_bits> void planes(auto * block, auto * codes, int row) {
    switch (code_bits) {
        case 8: return io::plane(block, codes, row, 8, 0, 8);
        case 4: return io::plane(block, codes, row, 4, 0, 4);
        case 5:
            io::plane(block, codes, row, 4, 0, 4);
            return io::plane(block + 256, codes, row, 1, 4, 1);
        case 6:
            io::plane(block, codes, row, 4, 0, 4);
            return io::plane(block + 256, codes, row, 2, 4, 2);
        case 2: return io::plane(block, codes, row, 2, 0, 2);
        case 3:
            io::plane(block, codes, row, 2, 0, 2);
            return io::plane(block + 128, codes, row, 1, 2, 1);
        default: return;
    }
}

// Chunk `index` of a group at `group`, one row.
template <class io, weight_type type> void packed_chunk(int64_t k, int64_t index, auto * group, row_chunk & c, int row, int blocks) {
    constexpr weight_format f = format_of(type);
    auto * header = group + index * packed_header_chunk(f);
    auto * chunk = group + packed_body_offset(f, k) + index * packed_chunk_bytes(f);
    auto * subs = chunk;
    if (f.block == 256) {
        for (int s = 0; s < f.supers; s++) io::half(header + 32 * s + 2 * row, c.supers[s][0]);
    } else {
        for (int b = 0; b < blocks; b++)
            for (int s = 0; s < f.supers; s++) io::half(chunk + 32 * (b * f.supers + s) + 2 * row, c.supers[s][b]);
        subs += blocks * f.supers * 32;
    }
    switch (f.subs) {
        case sub_scales::none: break;
        case sub_scales::exponent:
            for (int b = 0; b < blocks; b++) io::byte(subs[16 * b + row], c.subs[b]);
            break;
        case sub_scales::bytes_16:
            for (int j = 0; j < 16; j++) io::byte(subs[16 * j + row], c.subs[j]);
            break;
        case sub_scales::six_bits_8:
            for (int i = 0; i < 4; i++) io::low_bits(subs[16 * i + row], c.subs[i], c.subs[4 + i]);
            for (int i = 0; i < 2; i++) io::high_bits(header[32 * f.supers + 16 * i + row], c.subs + i, 2);
            break;
        case sub_scales::six_bits_16:
            for (int i = 0; i < 4; i++) {
                io::low_bits(subs[16 * i + row], c.subs[i], c.subs[4 + i]);
                io::low_bits(subs[64 + 16 * i + row], c.subs[8 + i], c.subs[12 + i]);
                io::high_bits(subs[128 + 16 * i + row], c.subs + i, 4);
            }
            break;
    }
    auto * codes = chunk + packed_prefix(f, blocks);
    for (int b = 0; b < blocks; b++) planes<io, f.code_bits>(codes + b * f.code_bits * 64, c.codes + 32 * b, row);
}

// Floating types: element `bytes` wide; f32 and f16 [k][16], bf16 [k / 2][16][2].
template <bool packing> void move_floats(weight_type type, int64_t k, auto * rows, int64_t stride, int first, int num_rows, auto * group) {
    const int64_t bytes = format_of(type).block_bytes;
    for (int r = 0; r < num_rows; r++) {
        auto * row = rows + r * stride;
        for (int64_t i = 0; i < k; i++) {
            auto * at = group + (type == weight_type::bf16 ? (i / 2 * 16 + first + r) * 4 + i % 2 * 2 : (i * 16 + first + r) * bytes);
            if constexpr (packing) memcpy(at, row + i * bytes, static_cast<size_t>(bytes));
            else memcpy(row + i * bytes, at, static_cast<size_t>(bytes));
        }
        if constexpr (packing) {
            if (type == weight_type::bf16 && k % 2 != 0) store_16(group + (k / 2 * 16 + first + r) * 4 + 2, 0);
        }
    }
}

// Chunk after chunk, all rows of each: the chunk stays in L1 while its rows are scattered into it.
template <bool packing, weight_type type> void move_rows(int64_t k, auto * rows, int64_t stride, int first, int num_rows, auto * group) {
    constexpr weight_format f = format_of(type);
    row_chunk c;
    for (int64_t start = 0; start < k; start += packed_columns) {
        const int blocks = static_cast<int>((k - start < packed_columns ? k - start : packed_columns) / 32);
        const int gguf_blocks = blocks * 32 / f.block;
        const int64_t index = start / packed_columns;
        for (int r = 0; r < num_rows; r++) {
            auto * at = rows + r * stride + start / f.block * f.block_bytes;
            if constexpr (packing) {
                for (int b = 0; b < gguf_blocks; b++) gguf_block<reader, type>(at + b * f.block_bytes, c, b);
                packed_chunk<to_packed, type>(k, index, group, c, first + r, blocks);
            } else {
                packed_chunk<from_packed, type>(k, index, group, c, first + r, blocks);
                memset(at, 0, static_cast<size_t>(gguf_blocks * f.block_bytes));
                for (int b = 0; b < gguf_blocks; b++) gguf_block<writer, type>(at + b * f.block_bytes, c, b);
            }
        }
    }
}

template <bool packing> void move_any(weight_type type, int64_t k, auto * rows, int64_t stride, int first, int num_rows, auto * group) {
    switch (type) {
#define ALLOY_WEIGHT(name, host_type, block, ...)                                                              \
    case weight_type::name:                                                                                    \
        if constexpr (block == 1) return move_floats<packing>(weight_type::name, k, rows, stride, first, num_rows, group); \
        else return move_rows<packing, weight_type::name>(k, rows, stride, first, num_rows, group);
#include "formats/weights.inc"
#undef ALLOY_WEIGHT
        case weight_type::count: break;
    }
}

} // namespace

weight_type weight_type_of(int host_type) {
    for (int i = 0; i < static_cast<int>(weight_type::count); i++) {
        if (weight_formats[i].host_type == host_type) return static_cast<weight_type>(i);
    }
    return weight_type::count;
}

void pack_rows(weight_type type, int64_t k, const void * gguf, int64_t stride_gguf, int first, int num_rows, void * group) {
    move_any<true>(type, k, static_cast<const uint8_t *>(gguf), stride_gguf, first, num_rows, static_cast<uint8_t *>(group));
}

void unpack_rows(weight_type type, int64_t k, void * gguf, int64_t stride_gguf, int first, int num_rows, const void * group) {
    move_any<false>(type, k, static_cast<uint8_t *>(gguf), stride_gguf, first, num_rows, static_cast<const uint8_t *>(group));
}

} // namespace alloy
