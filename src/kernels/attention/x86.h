// What the x86 files of family attention share: 16 bytes at a time, for cells in blocks and for codes of values.
namespace alloy {
namespace {

struct byte_vec {
    using bytes = __m128i;

    static bytes load_bytes(const uint8_t * p) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)); }
    static bytes low_nibbles(bytes x) { return _mm_and_si128(x, _mm_set1_epi8(15)); }
    static bytes high_nibbles(bytes x) { return _mm_and_si128(_mm_srli_epi16(x, 4), _mm_set1_epi8(15)); }
    static bytes look_up(const int8_t * table, bytes x) {
        return _mm_shuffle_epi8(_mm_load_si128(reinterpret_cast<const __m128i *>(table)), x);
    }

    static bytes from_words(uint64_t low, uint64_t high) { return _mm_set_epi64x(static_cast<int64_t>(high), static_cast<int64_t>(low)); }
    // Levels -63, -61 .. 63 of six-bit codes.
    static bytes odd_levels(bytes nibbles, bytes high) {
        const bytes code = _mm_or_si128(nibbles, _mm_slli_epi16(high, 4));
        return _mm_sub_epi8(_mm_add_epi8(code, code), _mm_set1_epi8(63));
    }

    // 4 rows of d codes -> [d][4]
    static void interleave4(const int8_t * rows, int64_t d, int8_t * out) {
        for (int64_t i = 0; i < d; i += 16) {
            const auto row = [&](int64_t t) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(rows + t * d + i)); };
            const __m128i a = _mm_unpacklo_epi8(row(0), row(1)), b = _mm_unpackhi_epi8(row(0), row(1));
            const __m128i c = _mm_unpacklo_epi8(row(2), row(3)), e = _mm_unpackhi_epi8(row(2), row(3));
            auto * to = reinterpret_cast<__m128i *>(out + 4 * i);
            _mm_storeu_si128(to, _mm_unpacklo_epi16(a, c));
            _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(a, c));
            _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(b, e));
            _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(b, e));
        }
    }
};

} // namespace
} // namespace alloy
