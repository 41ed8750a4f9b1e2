// Every row of kernels.inc against the oracle of attention_scene.h.
#include "kernels/attention/attention.h"
#include "support/attention_scene.h"
#include "support/kernel_test.h"

namespace alloy {
namespace {

using namespace test;

using listed = test::listed<cell_type, const attention_cells *>;
const listed list[] = {
#define ALLOY_KERNEL(cells, token) {cell_type::cells, isa::token, "attention_" #cells "_" #token, &attention_##cells##_##token},
#include "kernels/attention/kernels.inc"
#undef ALLOY_KERNEL
};

bool same_bits(const std::vector<float> & a, const std::vector<float> & b) { return std::memcmp(a.data(), b.data(), a.size() * 4) == 0; }

// --- exact mode ---------------------------------------------------------------------------------------------------------------------
struct head {
    int64_t d_k, d_v;
};
constexpr head heads[] = {{16, 16},   {64, 64},   {80, 80},   {96, 96},   {112, 112}, {128, 128},
                          {192, 192}, {256, 256}, {576, 576}, {192, 128}, {576, 512}, {64, 96}};

class attention : public test::kernel_test<listed> {
  protected:
    cell_type type = GetParam().op;
    isa token = GetParam().token;

    // Does nothing after a failure, nor for heads that are no whole blocks.
    void check(const shape & wanted, std::initializer_list<way> ways = {way::few, way::tiles}) const {
        if (HasFatalFailure() || !takes(wanted.k, wanted.d_k) || !takes(wanted.v, wanted.d_v)) return;
        scene s(wanted, token);
        for (const way how : ways) {
            SCOPED_TRACE(how == way::few ? "few" : how == way::tiles ? "tiles" : "int8");
            s.attend(how);
            const std::vector<float> once = s.result();
            s.attend(how);
            EXPECT_TRUE(same_bits(once, s.result())) << s.of;
            s.expect_right(how);
        }
    }
};

TEST_P(attention, few_rows_of_every_head_size) {
    constexpr int64_t cells[] = {1, 2, 63, 64, 65, 127, 130, 300}, rows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16}, runs[] = {1 << 20, 64, 128};
    for (size_t turn = 0; turn < 8 * std::size(heads); turn++) {
        const auto [d_k, d_v] = heads[turn / 8];
        check({.k = type, .v = type, .d_k = d_k, .d_v = d_v, .num_rows = rows[(turn + turn / 8) % 10], .num_cells = cells[turn % 8],
               .run_cells = runs[turn % 3], .mask = all_masks[turn % 2], .turned = turn % 3 != 0});
    }
}

TEST_P(attention, many_rows) {
    constexpr int64_t rows[] = {1, 5, 6, 7, 17, 64, 130}, cells[] = {300, 65, 128, 40, 191};
    for (size_t turn = 0; turn < 2 * std::size(heads); turn++) {
        const auto [d_k, d_v] = heads[turn / 2];
        check({.k = type, .v = type, .d_k = d_k, .d_v = d_v, .num_rows = rows[turn % 7], .num_cells = cells[turn % 5]}, {way::tiles});
    }
}

TEST_P(attention, every_number_of_cells) {
    if (type != cell_type::f16) return;
    for (int64_t cells = 0; cells <= 300; cells++) check({.k = type, .v = type, .num_rows = 3, .num_cells = cells});
}

// Equal cells, as of a repeated token: the errors of sums do not average out.
TEST_P(attention, many_equal_cells) {
    if (type != cell_type::f32) return;
    check({.k = type, .v = type, .d_k = 16, .d_v = 16, .num_rows = 2, .num_cells = 16384, .mask = masks::none, .keys = values::zeros,
           .vals = values::alternating, .value_size = 0.0333f});
}

TEST_P(attention, keys_and_values_of_different_types) {
    for (int i = 0; i < static_cast<int>(cell_type::count); i++) {
        const shape s = {.k = type, .v = static_cast<cell_type>(i), .num_rows = 3, .num_cells = 70, .recent = false};
        check(s, {way::few, way::tiles, way::int8});
    }
}

TEST_P(attention, masks_softcaps_and_sinks) {
    for (const masks mask : all_masks) {
        for (const float softcap : {0.0f, 0.5f, 5.0f, 30.0f, 50.0f}) {
            shape s = {.k = type, .v = type, .d_v = 32, .mask = mask, .recent = false, .logits = 3, .softcap = softcap, .sinks = true};
            check(s, {way::few, way::tiles, way::int8});
            s.logits = 60, s.sinks = false;
            check(s);
        }
    }
}

// From the sums that whole attention told.
TEST_P(attention, probabilities_of_a_block) {
    for (const masks mask : {masks::causal, masks::alibi}) {
        scene s({.k = type, .v = type, .num_rows = 20, .num_cells = 300, .mask = mask, .seal_all = true, .means = true}, token);
        std::vector<float> log_sums(20);
        for (int64_t r = 0; r < 20; r++) s.rows[r].log_sum = &log_sums[r];
        s.attend(way::few);
        part whole(s.args);
        for (int64_t block = 0; block < 5; block++) {
            alignas(64) float p[attention_tile * attention_block];
            attention_probabilities(s.args, whole.state, block, p);
            for (int64_t i = 0; i < 20 * attention_block; i++) {
                const int64_t r = i / attention_block, c = block * attention_block + i % attention_block;
                if (c >= 300) continue;
                const double bias = s.hides(r, c) ? -INFINITY : s.rows[r].slope * half_value(reinterpret_cast<const uint8_t *>(s.rows[r].mask + c));
                ASSERT_NEAR(p[i], std::exp(s.logit(r, c) + bias - log_sums[r] / log2_e), 1e-3) << "row " << r << " cell " << c;
            }
        }
    }
}

TEST_P(attention, means_of_sealed_pages) {
    if (!is_coded(type)) return;
    for (const masks mask : all_masks) {
        for (const float softcap : {0.0f, 5.0f}) {
            const shape s = {.k = type, .v = type, .d_v = 32, .num_rows = 19, .num_cells = 700, .mask = mask, .recent = false, .softcap = softcap, .means = true};
            check(s, {way::few, way::tiles, way::int8});
        }
    }
}

TEST_P(attention, balanced_channels_of_sealed_pages) {
    if (!is_coded(type)) return;
    for (const masks mask : all_masks) {
        for (const bool means : {false, true}) {
            const shape s = {.k = type, .v = type, .d_v = 32, .num_rows = 19, .num_cells = 700, .mask = mask, .recent = false, .means = means, .balanced = true};
            check(s, {way::few, way::tiles, way::int8});
        }
    }
}

TEST_P(attention, evicted_cells_have_no_effect) {
    if (!is_coded(type)) return;
    for (const masks mask : all_masks) {
        for (const way how : {way::few, way::tiles, way::int8}) {
            scene s({.k = type, .v = type, .num_rows = how == way::few ? 5 : 30, .num_cells = 700, .mask = mask, .recent = false, .seal_all = true}, token);
            s.pack(1, 7, 5);
            s.pack(8, 2, 1);
            s.attend(how);
            s.expect_right(how);
        }
    }
}

TEST_P(attention, extremes) {
    constexpr float sizes[] = {1e-5f, 1, 100};
    int turn = 0;
    for (const values keys : {values::normal, values::zeros, values::one_hot, values::alternating, values::wide}) {
        for (const values vals : {values::normal, values::zeros, values::one_hot, values::alternating, values::large_negative}) {
            check({.k = type, .v = type, .d_k = turn % 5 == 2 ? 576 : 64, .num_cells = 130, .logits = 64, .keys = keys, .vals = vals,
                   .value_size = sizes[turn % 3]});
            turn++;
        }
    }
}

TEST_P(attention, parts_give_the_whole) {
    scene s({.k = type, .v = type, .num_cells = 400, .run_cells = 128, .mask = masks::holes, .sinks = true}, token);
    part parts[] = {part(s.args), part(s.args), part(s.args), part(s.args)}; // the last sees nothing
    const attention_state states[] = {parts[0].state, parts[1].state, parts[2].state, parts[3].state};
    for (int64_t i = 0; i < 3; i++) s.add_blocks(states[i], i, 3);
    s.finish(states, 4, {0, 9});
    s.expect_right(way::few);
    const std::vector<float> whole = s.result();
    s.finish(states, 4, {0, 1, 6, 9});
    EXPECT_TRUE(same_bits(whole, s.result()));
}

TEST_P(attention, hidden_cells_have_no_effect_and_seen_nan_stays) {
    scene s({.k = type, .v = type, .num_rows = 21, .num_cells = 300, .mask = masks::holes, .recent = false}, token);
    const float bad[] = {nan, inf, -inf, nan, inf};
    for (int i = 0; i < 5; i++) s.k.poison(64 * i + 5, 7 * i, bad[i]), s.v.poison(64 * i + 5, 9 * i, bad[(i + 2) % 5]); // hidden from all
    for (const bool seen_by_some : {false, true}) {
        if (seen_by_some) {
            s.v.poison(77, 3, nan);
            s.k.poison(141, 1, nan);
            s.mask.row<uint16_t>(3)[141] = 0; // the only cell of this row
            s.sight.row<uint8_t>(3)[2] |= sight_visible;
        }
        for (const way how : {way::few, way::tiles, way::int8}) {
            s.attend(how);
            for (int64_t r = 0; r < s.of.num_rows; r++) {
                const bool sees_key = seen_by_some && !s.hides(r, 141), sees_value = seen_by_some && !s.hides(r, 77);
                const float * got = s.rows[r].out;
                EXPECT_EQ(sees_key || sees_value, std::isnan(got[3])) << "row " << r << " way " << static_cast<int>(how);
                if (sees_key) {
                    EXPECT_TRUE(std::all_of(got, got + 64, [](float x) { return std::isnan(x); })) << "row " << r;
                } else if (!sees_value) {
                    EXPECT_TRUE(within(got, s.oracle(r, s.allowed(r, how)))) << "row " << r;
                }
            }
        }
    }
}

// Cells that are stored rotated want the queries rotated, and the output back.
TEST_P(attention, rotates_queries_and_outputs) {
    const shape of = {.k = type, .v = type, .d_k = 96, .d_v = 64, .num_rows = 8};
    if (is_coded(type)) return; // turned in all other tests
    scene s(of, token), by_hand(of, token);
    for (int64_t r = 0; r < of.num_rows; r++) rotate(by_hand.q.row<float>(r), 3, 32);
    s.args.rotate_q = 32, s.args.rotate_out = 64;
    for (const way how : {way::few, way::tiles}) {
        s.attend(how);
        for (int64_t r = 0; r < of.num_rows; r++) {
            std::vector<double> out;
            for (const expected & e : by_hand.oracle(r, exact)) out.push_back(e.value);
            rotate(out.data(), 1, 64);
            std::vector<expected> want;
            for (const double x : out) want.push_back({x, 1e-4}); // of values up to 5
            ASSERT_TRUE(within(s.rows[r].out, want)) << "row " << r << " way " << static_cast<int>(how);
        }
    }
}

// --- INT8 mode ----------------------------------------------------------------------------------------------------------------------
// Errors as shares of what the oracle's output is worth in the mean. For cells of equal weight 8 bits give 0.012 to 0.015.
TEST_P(attention, int8_rounds_to_8_bits) {
    const bool has_8_bit_p = token == isa::avx512_vnni || token == isa::neon_i8mm;
    for (const auto [d_k, d_v] : {head{64, 64}, head{80, 80}, head{128, 128}, head{192, 128}, head{576, 512}}) {
        if (!takes(type, d_k)) continue;
        for (const bool recent : {false, true}) {
            scene s({.k = type, .v = type, .d_k = d_k, .d_v = d_v, .num_rows = 24, .num_cells = 700, .recent = recent}, token);
            const attention_counts counts = s.attend(way::int8);
            double errors = 0, squares = 0, largest = 0; // largest: in units of its row
            for (int64_t r = 0; r < s.of.num_rows; r++) {
                const std::vector<expected> want = s.oracle(r, 0);
                double row_squares = 0, row_largest = 0;
                for (int64_t j = 0; j < d_v; j++) {
                    const double error = s.rows[r].out[j] - want[j].value;
                    errors += error * error, row_squares += want[j].value * want[j].value;
                    row_largest = std::max(row_largest, std::fabs(error));
                }
                squares += row_squares, largest = std::max(largest, row_largest / std::sqrt(row_squares / static_cast<double>(d_v)));
            }
            EXPECT_LT(std::sqrt(errors / squares), has_8_bit_p ? 0.016 : 0.024) << s.of;
            EXPECT_LT(largest, has_8_bit_p ? 0.1 : 0.14) << s.of;
            EXPECT_GT(counts.int8_tiles, 0) << s.of;
            EXPECT_EQ(recent, counts.f32_tiles > 0) << s.of;
            EXPECT_EQ(0, counts.unsafe_tiles) << s.of;
        }
    }
}

TEST_P(attention, int8_computes_recent_cells_in_f32) {
    scene far({.k = type, .v = type, .num_rows = 24, .num_cells = 700, .mask = masks::alibi}, token);
    for (attention_row & row : far.rows) row.slope = 0.25f; // leaves no weight to cells further back
    EXPECT_GT(far.attend(way::int8).int8_tiles, 0);
    far.expect_right();
    scene near({.k = type, .v = type, .num_rows = 24, .num_cells = attention_window}, token);
    const attention_counts counts = near.attend(way::int8);
    EXPECT_EQ(0, counts.int8_tiles);
    EXPECT_GT(counts.f32_tiles, 0);
    EXPECT_EQ(0, counts.unsafe_tiles);
    near.expect_right();
}

// One channel of the queries is large where keys are about 0: logits stay small, their errors do not.
TEST_P(attention, int8_computes_blocks_in_f32_whose_logits_would_be_off) {
    scene s({.k = type, .v = type, .num_rows = 24, .num_cells = 700, .recent = false}, token);
    std::vector<float> key(64);
    for (int64_t c = 0; c < s.of.num_cells; c++) {
        fill_row(values::normal, key.data(), 64, c);
        key[3] = 0;
        s.k.put(c, key.data());
    }
    for (int64_t r = 0; r < s.of.num_rows; r++) s.q.row<float>(r)[3] = 800;
    const attention_counts counts = s.attend(way::int8);
    EXPECT_EQ(0, counts.int8_tiles);
    EXPECT_GT(counts.f32_tiles, 0);
    EXPECT_EQ(counts.f32_tiles, counts.unsafe_tiles);
    s.expect_right();
}

INSTANTIATE_TEST_SUITE_P(list, attention, testing::ValuesIn(list), test::row_name<listed>);

// --- list and cell types --------------------------------------------------------------------------------------------------------
TEST(attention_list, has_a_row_for_this_cpu) { test::expect_runnable_row(list); }
TEST(attention_list, selector_gives_the_first_allowed_row) { test::expect_selector(list, find_attention); }
TEST(attention_list, rows_hold_what_they_are_listed_as) {
    for (const listed & row : list) {
        EXPECT_EQ(row.op, row.run->type) << row.name;
        EXPECT_EQ(row.token, row.run->tiles->token) << row.name;
    }
}

TEST(attention_list, cell_types_are_those_of_the_host) {
    cell_type found;
    int known = 0;
    for (int host = -2; host < 64; host++) known += cell_type_of_host(host, found);
    EXPECT_EQ(static_cast<int>(cell_type::count) - static_cast<int>(kv_codec::count), known);
    for (int i = 0; i < static_cast<int>(kv_codec::count); i++) {
        const cell_type type = cell_type_of_codec(static_cast<kv_codec>(i));
        EXPECT_TRUE(is_coded(type));
        EXPECT_STREQ(traits_of_codecs[i].name, cell_type_name(type));
        EXPECT_EQ(kv_codec_row_bytes(static_cast<kv_codec>(i), 96), cell_row_bytes(type, 96));
    }
    for (int i = 0; i < known; i++) {
        const auto type = static_cast<cell_type>(i);
        EXPECT_STREQ(layout_of(type).name, cell_type_name(type));
        EXPECT_TRUE(cell_type_of_host(layout_of(type).host_type, found) && found == type) << cell_type_name(type);
        for (int64_t d = 16; d <= attention_max_d; d += 16) {
            EXPECT_EQ(takes(type, d) ? gguf_row_bytes(weight_of(type), d) : 0, cell_row_bytes(type, d)) << cell_type_name(type) << " " << d;
        }
    }
}

} // namespace
} // namespace alloy
