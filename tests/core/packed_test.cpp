// The packed formats: exact inverses, one packed bit for each GGUF bit, rows in any order, and the size that packed.h promises.
#include "formats/packed.h"
#include "support/gguf_reference.h"

#include <gtest/gtest.h>

#include <bit>
#include <string>
#include <vector>

namespace alloy {
namespace {

class packed : public testing::TestWithParam<int> {
  protected:
    weight_type type = static_cast<weight_type>(GetParam());
    const weight_format & format = format_of(type);
    std::mt19937_64 engine{7};

    std::vector<uint8_t> random_bytes(int64_t n) {
        std::vector<uint8_t> bytes(static_cast<size_t>(n));
        for (uint8_t & b : bytes) b = static_cast<uint8_t>(engine());
        return bytes;
    }
    std::vector<int64_t> depths() const {
        if (is_floating(format)) return {1, 2, 31, 256, 577};
        if (format.block == 256) return {256, 512, 2048};
        return {32, 64, 224, 256, 288, 2080};
    }
    std::vector<uint8_t> group(int64_t k) const { return std::vector<uint8_t>(static_cast<size_t>(packed_group_bytes(format, k))); }
};

TEST_P(packed, unpack_inverts_pack_for_any_bits) {
    for (const int64_t k : depths()) {
        const int64_t row = test::gguf_row_bytes(type, k);
        const std::vector<uint8_t> gguf = random_bytes(row * packed_rows);
        std::vector<uint8_t> packed = group(k), back(gguf.size(), 0xAA);
        pack_rows(type, k, gguf.data(), row, 0, packed_rows, packed.data());
        unpack_rows(type, k, back.data(), row, 0, packed_rows, packed.data());
        ASSERT_EQ(gguf, back) << "k " << k;
    }
}

TEST_P(packed, rows_may_come_in_any_order_and_leave_others_alone) {
    const int64_t k = 512, row = test::gguf_row_bytes(type, k), stride = row + 5;
    const std::vector<uint8_t> gguf = random_bytes(stride * packed_rows);
    std::vector<uint8_t> whole = group(k), parts = group(k);
    pack_rows(type, k, gguf.data(), stride, 0, packed_rows, whole.data());
    for (const int first : {9, 0, 13, 4}) {
        const int n = first == 9 ? 4 : first == 0 ? 4 : first == 13 ? 3 : 5;
        pack_rows(type, k, gguf.data() + first * stride, stride, first, n, parts.data());
    }
    ASSERT_EQ(whole, parts);
    std::vector<uint8_t> some(static_cast<size_t>(3 * stride), 0xAA);
    unpack_rows(type, k, some.data(), stride, 6, 3, whole.data());
    for (int r = 0; r < 3; r++) {
        for (int64_t i = 0; i < row; i++) ASSERT_EQ(gguf[static_cast<size_t>((6 + r) * stride + i)], some[static_cast<size_t>(r * stride + i)]);
        if (r < 2) {
            ASSERT_EQ(0xAA, some[static_cast<size_t>(r * stride + row)]) << "between rows";
        }
    }
}

// The packing only moves bits: each bit of a row goes to a place of its own, which depends on nothing else.
TEST_P(packed, moves_each_bit_to_a_place_of_its_own) {
    const int64_t k = is_floating(format) ? 8 : 256, row = test::gguf_row_bytes(type, k);
    std::vector<uint8_t> zeros(static_cast<size_t>(row)), base = group(k), seen = group(k);
    pack_rows(type, k, zeros.data(), row, 5, 1, base.data());
    for (int64_t bit = 0; bit < 8 * row; bit++) {
        std::vector<uint8_t> one = zeros, moved = group(k);
        one[static_cast<size_t>(bit / 8)] = static_cast<uint8_t>(1 << bit % 8);
        pack_rows(type, k, one.data(), row, 5, 1, moved.data());
        int flipped = 0;
        for (size_t i = 0; i < moved.size(); i++) {
            const auto change = static_cast<uint8_t>(moved[i] ^ base[i]);
            flipped += std::popcount(change);
            ASSERT_EQ(0, seen[i] & change) << "bit " << bit << " meets another in byte " << i;
            seen[i] |= change;
        }
        ASSERT_EQ(1, flipped) << "bit " << bit;
    }
}

// The index equation of packed.h for codes, read back bit by bit from types whose GGUF order is plain.
class packed_codes : public packed {};
TEST_P(packed_codes, are_where_the_byte_map_says) {
    const int64_t k = 288, row = test::gguf_row_bytes(type, k);
    const std::vector<uint8_t> gguf = random_bytes(row * packed_rows);
    std::vector<uint8_t> packed = group(k);
    pack_rows(type, k, gguf.data(), row, 0, packed_rows, packed.data());
    for (int r = 0; r < packed_rows; r++) {
        for (int64_t i = 0; i < k; i++) {
            const int64_t chunk = i / 256, blocks = chunk == 0 ? 8 : 1, b = i % 256 / 32, c = i % 32, v = c / 4, p = 4 * r + c % 4;
            const uint8_t * block = packed.data() + chunk * packed_chunk_bytes(format) + packed_prefix(format, blocks) + b * format.code_bits * 64;
            int got = format.code_bits == 8 ? block[64 * v + p] : block[64 * (v % 4) + p] >> (v / 4 * 4) & 15;
            if (format.code_bits == 5) got |= (block[256 + p] >> v & 1) << 4;
            const uint8_t * g = gguf.data() + r * row + i / 32 * format.block_bytes;
            int want = type == weight_type::q8_0 ? g[2 + c] : type == weight_type::q4_0 ? g[2 + c % 16] >> (c / 16 * 4) & 15 : g[6 + c % 16] >> (c / 16 * 4) & 15;
            if (type == weight_type::q5_0) want |= (g[2 + c / 8] >> (c % 8) & 1) << 4;
            ASSERT_EQ(want, got) << "row " << r << " column " << i;
        }
    }
}

TEST_P(packed, is_as_large_as_gguf) {
    for (const int64_t k : {576, 2048, 4096, 8192, 8192 + 32}) {
        if (k % format.block != 0) continue;
        const auto gguf = static_cast<double>(test::gguf_row_bytes(type, k) * packed_rows);
        EXPECT_NEAR(1, static_cast<double>(packed_group_bytes(format, k)) / gguf, 0.01) << "k " << k;
        EXPECT_EQ(0, packed_group_bytes(format, k) % 64);
    }
    EXPECT_EQ(type, weight_type_of(format.host_type));
}

std::string name_of(const testing::TestParamInfo<int> & info) { return weight_formats[info.param].name; }
constexpr int plain_types[] = {static_cast<int>(weight_type::q8_0), static_cast<int>(weight_type::q4_0), static_cast<int>(weight_type::q5_0)};
INSTANTIATE_TEST_SUITE_P(formats, packed_codes, testing::ValuesIn(plain_types), name_of);
INSTANTIATE_TEST_SUITE_P(formats, packed, testing::Range(0, static_cast<int>(weight_type::count)), name_of);

} // namespace
} // namespace alloy
