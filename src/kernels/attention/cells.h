// Part of generic.h: 16 elements of a row of cells as f32. Blocks are those of GGUF: a scale in f16, a minimum where the type has one, the
// fifth bits of codes, the codes. Codecs: as in formats/kv_codec.h, less the scale.
namespace alloy {
namespace {

alignas(16) constexpr int8_t iq4_nl_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

alignas(16) constexpr int8_t n4_levels[16] = { // by code
    kv_levels_n4[0],  kv_levels_n4[1],  kv_levels_n4[2],  kv_levels_n4[3],  kv_levels_n4[4],  kv_levels_n4[5],  kv_levels_n4[6],  kv_levels_n4[7],
    -kv_levels_n4[0], -kv_levels_n4[1], -kv_levels_n4[2], -kv_levels_n4[3], -kv_levels_n4[4], -kv_levels_n4[5], -kv_levels_n4[6], -kv_levels_n4[7]};
alignas(16) constexpr int8_t n3_levels[16] = {kv_levels_n3[0], kv_levels_n3[1], kv_levels_n3[2], kv_levels_n3[3]};

template <cell_type type> constexpr cell_traits traits = traits_of_cells[static_cast<int>(type)];

template <cell_type type> constexpr bool has_codec = traits<type>.host_type == coded_cells;

// 16 codes of two bits of the 32 at `p`.
template <int half> [[gnu::always_inline]] inline vec::bytes two_bits(const uint8_t * p) {
    uint64_t x;
    __builtin_memcpy(&x, p, 8);
    constexpr uint64_t mask = 0x0303030303030303;
    return vec::from_words((x >> (4 * half)) & mask, (x >> (4 * half + 2)) & mask);
}

// Elements [32 pair + 16 half, + 16) of a row of codes, as levels.
template <cell_type type, int half> [[gnu::always_inline]] inline vec::bytes levels16(const uint8_t * row, int64_t pair) {
    const uint8_t * block = row + pair * traits<type>.bytes;
    if constexpr (type == cell_type::i8) return vec::load_bytes(block + 16 * half);
    if constexpr (type == cell_type::n3) return vec::negate_where(vec::look_up(n3_levels, two_bits<half>(block)), block + 8 + 2 * half);
    const vec::bytes nibbles = half ? vec::high_nibbles(vec::load_bytes(block)) : vec::low_nibbles(vec::load_bytes(block));
    if constexpr (type == cell_type::n4) return vec::look_up(n4_levels, nibbles);
    if constexpr (type == cell_type::n5) return vec::negate_where(vec::look_up(kv_levels_n5, nibbles), block + 16 + 2 * half);
    return vec::odd_levels(nibbles, two_bits<half>(block + 16)); // z6
}

// Elements [32 pair + 16 half, + 16) of the row at `row`.
template <cell_type type, int half> [[gnu::always_inline]] inline vec::reg load16(const uint8_t * row, int64_t pair) {
    if constexpr (type == cell_type::f32) return vec::load(reinterpret_cast<const float *>(row) + 32 * pair + 16 * half);
    if constexpr (type == cell_type::f16) return vec::from_halves(row + 64 * pair + 32 * half);
    if constexpr (type == cell_type::bf16) return vec::from_bf16(row + 64 * pair + 32 * half);
    if constexpr (has_codec<type>) return vec::from_signed(levels16<type, half>(row, pair));
    const uint8_t * block = row + pair * traits<type>.bytes;
    const vec::reg d = vec::set1_half(block);
    if constexpr (type == cell_type::q8_0) return vec::mul(d, vec::from_signed(vec::load_bytes(block + 2 + 16 * half)));
    constexpr bool has_minimum = type == cell_type::q4_1 || type == cell_type::q5_1;
    constexpr bool has_fifth_bit = type == cell_type::q5_0 || type == cell_type::q5_1;
    const uint8_t * bits = block + (has_minimum ? 4 : 2);
    const vec::bytes nibbles = vec::load_bytes(bits + (has_fifth_bit ? 4 : 0));
    vec::bytes codes = half ? vec::high_nibbles(nibbles) : vec::low_nibbles(nibbles);
    if constexpr (has_fifth_bit) codes = vec::set_bit4(codes, bits + 2 * half);
    if constexpr (type == cell_type::iq4_nl) return vec::mul(d, vec::from_signed(vec::look_up(iq4_nl_values, codes)));
    const vec::reg x = vec::from_signed(codes);
    if constexpr (has_minimum) return vec::fma(d, x, vec::set1_half(block + 2));
    return vec::mul(d, vec::sub(x, vec::set1(has_fifth_bit ? 16.0f : 8.0f)));
}

} // namespace
} // namespace alloy
