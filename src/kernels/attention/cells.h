// Part of generic.h: 16 elements of a row of cells as f32. Blocks are those of GGUF: a scale in f16, a minimum where the type has one, the
// fifth bits of codes, the codes.
namespace alloy {
namespace {

alignas(16) constexpr int8_t iq4_nl_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

template <cell_type type> constexpr cell_traits traits = traits_of_cells[static_cast<int>(type)];

// Elements [32 pair + 16 half, + 16) of the row at `row`.
template <cell_type type, int half> [[gnu::always_inline]] inline vec::reg load16(const uint8_t * row, int64_t pair) {
    if constexpr (type == cell_type::f32) return vec::load(reinterpret_cast<const float *>(row) + 32 * pair + 16 * half);
    if constexpr (type == cell_type::f16) return vec::from_halves(row + 64 * pair + 32 * half);
    if constexpr (type == cell_type::bf16) return vec::from_bf16(row + 64 * pair + 32 * half);
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
