// Attention as a test sees it: rows, masks and cells of any type in fenced memory, and softmax(Q K^T + mask) V in double precision over
// what the stored bytes are worth.
#pragma once
#include "kernels/attention/attention.h"
#include "support/compare.h"
#include "support/fenced_rows.h"
#include "support/gguf_reference.h"
#include "support/values.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <memory>
#include <ostream>
#include <set>

namespace alloy::test {

constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
constexpr double exact = 1e-5; // of the largest |V|, by contract
constexpr double rough = 2e-2; // what INT8 mode stays below where logits are small

// --- cells: GGUF blocks, as weights are, and codecs -----------------------------------------------------------------------------------
inline weight_type weight_of(cell_type type) {
    for (int i = 0; i < static_cast<int>(weight_type::count); i++) {
        if (format_of(static_cast<weight_type>(i)).host_type == traits_of_cells[static_cast<int>(type)].host_type) return static_cast<weight_type>(i);
    }
    return weight_type::count;
}
inline const weight_format & layout_of(cell_type type) { return format_of(weight_of(type)); }
inline bool takes(cell_type type, int64_t d) { return d % (is_coded(type) ? 32 : layout_of(type).block) == 0; }
// What cells beside sealed pages are.
inline cell_type declared_of(cell_type type) { return is_coded(type) ? cell_type::f16 : type; }

inline uint16_t half_of(double x) {
    const uint16_t sign = x < 0 ? 0x8000 : 0;
    if (!std::isfinite(x)) return std::isnan(x) ? 0x7E00 : sign | 0x7C00;
    return std::fabs(x) < 0x1p-14 ? sign | static_cast<uint16_t>(std::lround(std::fabs(x) * 0x1p24)) : half_bits(x);
}

// One block. As the host does it, the element of the largest magnitude has the lowest code: all codes occur, and steps of both signs.
inline void encode(cell_type type, const float * x, uint8_t * out) {
    static constexpr int iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    const weight_format & layout = layout_of(type);
    const uint16_t as_half = half_of(*x);
    if (type == cell_type::f16) std::memcpy(out, &as_half, 2);
    else if (is_floating(layout)) std::memcpy(out, reinterpret_cast<const uint8_t *>(x) + 4 - layout.block_bytes, layout.block_bytes);
    if (is_floating(layout)) return;

    const bool table = type == cell_type::iq4_nl, minima = layout.supers == 2;
    const int half = 1 << (layout.code_bits - 1), top = 2 * half - 1, zero = minima ? 0 : half;
    const auto [low, high] = std::minmax_element(x, x + 32);
    const float largest = -*low > *high ? *low : *high;
    const uint16_t numbers[] = {half_of(minima ? (*high - *low) / top : table ? largest / -127 : largest / -half), half_of(*low)};
    std::memset(out, 0, layout.block_bytes);
    std::memcpy(out, numbers, minima ? 4 : 2);
    const double step = half_value(out), base = minima ? half_value(out + 2) : 0;
    uint8_t * codes = out + layout.block_bytes - layout.code_bits / 4 * 16;
    for (int e = 0; e < 32; e++) {
        const double y = step == 0 ? 0 : (x[e] - base) / step;
        int code = table ? 0 : std::clamp(static_cast<int>(std::lround(y)) + zero, 0, top);
        for (int i = 1; table && i < 16; i++) code = std::fabs(iq4[i] - y) < std::fabs(iq4[code] - y) ? i : code;
        if (layout.code_bits == 8) codes[e] = static_cast<uint8_t>(code - half);
        else codes[e % 16] |= (code & 15) << (e < 16 ? 0 : 4);
        if (layout.code_bits == 5) codes[e / 8 - 4] |= code >> 4 << e % 8;
    }
}

inline void fill_row(values kind, float * row, int64_t d, uint64_t salt) {
    if (kind != values::normal) return fill(kind, row, d, salt);
    static const std::vector<float> pool = [] { // a number takes 0.1 us, and most of these tests' time if each is a new one
        std::vector<float> x(1 << 15);
        fill(values::normal, x.data(), 1 << 15, 0);
        return x;
    }();
    std::copy_n(pool.begin() + static_cast<int64_t>(salt * 0x9E3779B97F4A7C15u % (pool.size() - attention_max_d)), d, row);
}

// Orthonormal Walsh-Hadamard transform of each of `num` groups of n elements.
template <class T> void rotate(T * x, int64_t num, int64_t n) {
    for (int64_t half = 1; half < n; half *= 2) {
        for (int64_t i = 0; i < num * n; i++) {
            if (i & half) continue;
            const T a = x[i], b = x[i + half];
            x[i] = (a + b) * static_cast<T>(M_SQRT1_2), x[i + half] = (a - b) * static_cast<T>(M_SQRT1_2);
        }
    }
}

// One code of a row, bit by bit as formats/kv_codec.h has it. Writes it, or only reads.
inline int code_at(cell_type type, uint8_t * row, int64_t i, int written = -1) {
    const int bits = static_cast<int>(cell_row_bytes(type, 32)) / 4, e = static_cast<int>(i % 32);
    uint8_t * block = row + i / 32 * 4 * bits;
    struct {
        int byte, shift, width;
    } parts[2] = {};
    if (type == cell_type::i8) parts[0] = {e, 0, 8};
    if (type == cell_type::n3) parts[0] = {e % 8, 2 * (e / 8), 2}, parts[1] = {8 + e / 8, e % 8, 1};
    if (bits >= 4 && bits < 8) parts[0] = {e % 16, e < 16 ? 0 : 4, 4};
    if (type == cell_type::n5) parts[1] = {16 + e / 8, e % 8, 1};
    if (type == cell_type::z6) parts[1] = {16 + e % 8, 2 * (e / 8), 2};
    int code = 0, position = 0;
    for (const auto & part : parts) {
        const int mask = (1 << part.width) - 1;
        if (written >= 0) block[part.byte] = static_cast<uint8_t>((block[part.byte] & ~(mask << part.shift)) | ((written >> position & mask) << part.shift));
        code |= (block[part.byte] >> part.shift & mask) << position;
        position += part.width;
    }
    return code;
}

inline int level_of(cell_type type, int code) {
    const int bits = static_cast<int>(cell_row_bytes(type, 32)) / 4, sign = 1 << (bits - 1);
    if (type == cell_type::i8) return static_cast<int8_t>(code);
    if (type == cell_type::z6) return 2 * code - 63;
    const int8_t * levels = type == cell_type::n3 ? kv_levels_n3 : type == cell_type::n4 ? kv_levels_n4 : kv_levels_n5;
    return code & sign ? -levels[code & (sign - 1)] : levels[code];
}

// Keys or values. The cells of each run lie in memory of their own, which ends at a closed page. Of a codec, blocks are sealed pages but
// for two in four (unless all shall be) and a last one that is not full.
struct store {
    cell_type type;
    int64_t d, run_cells, turn; // turn: sealed pages are rotated in groups of so many
    std::vector<double> worth; // [cells][d]
    std::vector<std::unique_ptr<fenced_rows>> runs, sealed;
    std::vector<attention_page> pages;
    std::vector<float> means[2]; // of two blocks in three, in turn
    std::vector<float> balance;  // [d] of sealed pages, or none

    bool seal_all;

    store(cell_type of, int64_t d, int64_t num_cells, int64_t run_cells, values kind, float size, uint64_t salt, isa token, bool turned, bool seal_all,
          bool has_means = false, bool balanced = false)
        : type(declared_of(of)), d(d), run_cells(run_cells), turn(is_coded(of) && turned ? d & -d : 0), worth(d * num_cells), seal_all(seal_all) {
        const size_t bytes = gguf_row_bytes(weight_of(type), d), gap = type == cell_type::f32 ? 4 : 2;
        std::vector<float> row(d);
        for (int64_t i = 0; i < d && balanced && turn > 0; i++) balance.push_back(0.7f + 0.1f * static_cast<float>(i * 5 % 8));
        for (int i = 0; i < 2 && has_means; i++) fill(values::normal, (means[i] = row).data(), d, 99 + i);
        for (int64_t c = 0; c < num_cells; c++) {
            const int64_t here = std::min(run_cells, num_cells - c);
            if (c % run_cells == 0) runs.push_back(std::make_unique<fenced_rows>(here, bytes, bytes + gap, gap));
            if (c % attention_block == 0) add_page(of, c, num_cells, token);
            fill_row(kind, row.data(), d, salt + c);
            for (float & x : row) x *= size;
            put(c, row.data());
        }
    }
    void add_page(cell_type of, int64_t c, int64_t num_cells, isa token) {
        const int64_t block = c / attention_block;
        const bool seal = is_coded(of) && c + attention_block <= num_cells && (seal_all || block % 4 == 0 || block % 4 == 3);
        sealed.push_back(seal ? std::make_unique<fenced_rows>(attention_block, cell_row_bytes(of, d) + 2, cell_row_bytes(of, d) + 2) : nullptr);
        const cell_type lies = seal ? of : type;
        const float * mean = seal && block % 3 < 2 && !means[0].empty() ? means[block % 3].data() : nullptr;
        pages.push_back({seal ? sealed.back()->row<uint8_t>(0) : cell(c), find_attention(lies, isa_bit(token)), nullptr, mean});
    }
    int64_t stride() const { return runs.empty() ? 0 : runs[0]->stride(); }
    attention_pages view() const { return {pages.data(), d, stride()}; }
    bool is_sealed(int64_t c) const { return sealed[c / attention_block] != nullptr; }
    uint8_t * cell(int64_t c) const { return runs[c / run_cells]->row<uint8_t>(c % run_cells); }
    uint8_t * block(int64_t c, int64_t i) const { return cell(c) + i / layout_of(type).block * layout_of(type).block_bytes; }
    void put(int64_t c, const float * row) {
        if (is_sealed(c)) return put_codes(c, row);
        for (int64_t i = 0; i < d; i += layout_of(type).block) encode(type, row + i, block(c, i));
        decode(c);
    }
    void put_codes(int64_t c, const float * row) {
        std::vector<float> x(row, row + d);
        for (size_t i = 0; i < balance.size(); i++) x[i] *= balance[i];
        if (turn > 0) rotate(x.data(), d / turn, turn);
        const float * mean = pages[c / attention_block].mean;
        for (int64_t i = 0; i < d && mean != nullptr; i++) x[i] -= mean[i];
        uint8_t * page = sealed[c / attention_block]->row<uint8_t>(0);
        const cell_type codec = pages[c / attention_block].cells->type;
        const int64_t row_bytes = cell_row_bytes(codec, d), t = c % attention_block;
        float largest = 0;
        for (const float v : x) largest = std::max(largest, std::fabs(v));
        const uint16_t half = half_of(largest / 127);
        std::memcpy(page + attention_block * row_bytes + 2 * t, &half, 2);
        const double scale = half_value(reinterpret_cast<const uint8_t *>(&half));
        std::vector<double> back(d);
        const int codes = 1 << row_bytes * 8 / d;
        for (int64_t i = 0; i < d; i++) {
            int best = codec == cell_type::i8 && scale > 0 ? static_cast<uint8_t>(std::lround(std::clamp(x[i] / scale, -127.0, 127.0))) : 0;
            for (int code = 1; codec != cell_type::i8 && code < codes; code++) {
                if (std::fabs(level_of(codec, code) * scale - x[i]) < std::fabs(level_of(codec, best) * scale - x[i])) best = code;
            }
            code_at(codec, page + t * row_bytes, i, best);
            back[i] = scale * level_of(codec, best);
        }
        for (int64_t i = 0; i < d; i++) back[i] = scale * level_of(codec, code_at(codec, page + t * row_bytes, i)); // none overwritten
        for (int64_t i = 0; i < d && mean != nullptr; i++) back[i] += mean[i];
        if (turn > 0) rotate(back.data(), d / turn, turn);
        for (size_t i = 0; i < balance.size(); i++) back[i] /= balance[i];
        std::copy(back.begin(), back.end(), worth.begin() + c * d);
    }
    // Leaves the kept cells of a run, in whole pages.
    void pack(const attention_packing & run) {
        int64_t taken = 0;
        for (int64_t c = 0; c < run.num_blocks * attention_block; c++) {
            if ((run.kept[c / attention_block] >> c % attention_block & 1) == 0) continue;
            const auto page = [&](int64_t cell) { return sealed[run.first_block + cell / attention_block]->row<uint8_t>(0); };
            const int64_t row = cell_row_bytes(pages[run.first_block].cells->type, d), from = c % attention_block, to = taken % attention_block;
            std::memmove(page(taken) + to * row, page(c) + from * row, row);
            std::memmove(page(taken) + attention_block * row + 2 * to, page(c) + attention_block * row + 2 * from, 2);
            taken++;
        }
        for (int64_t b = 0; b < run.num_blocks; b++) {
            attention_page & at = pages[run.first_block + b];
            at.packing = &run;
            if (b * attention_block >= taken) at.data = nullptr, at.cells = nullptr;
        }
    }
    void poison(int64_t c, int64_t i, float x) { // element i, and with it its block; pages of codecs hold numbers only
        if (is_sealed(c)) return;
        const uint16_t half = half_of(x);
        if (takes(type, 1)) encode(type, &x, block(c, i));
        else std::memcpy(block(c, i), &half, 2);
        decode(c);
    }
    void decode(int64_t c) {
        for (int64_t i = 0; i < d; i++) worth[c * d + i] = gguf_value(weight_of(type), cell(c), i);
    }
};

// --- scenes -------------------------------------------------------------------------------------------------------------------------
enum class masks : uint8_t { none, causal, holes, alibi, finite };
constexpr masks all_masks[] = {masks::none, masks::causal, masks::holes, masks::alibi, masks::finite};
enum class way : uint8_t { few, tiles, int8 };

struct shape {
    cell_type k, v;
    int64_t d_k = 64, d_v = 64, num_rows = 9, num_cells = 200, run_cells = 1 << 20;
    masks mask = masks::causal;
    bool recent = true; // whether sight tells it
    float logits = 0;   // the largest |x|; 0: a deviation of 1
    float softcap = 0;
    bool sinks = false;
    values keys = values::normal, vals = values::normal;
    float value_size = 1;
    bool turned = true; // sealed pages are rotated
    bool seal_all = false;
    bool means = false; // sealed pages lack means
    bool balanced = false; // keys of sealed pages have factors
    int64_t num_blocks() const { return (num_cells + attention_block - 1) / attention_block; }
};
inline std::ostream & operator<<(std::ostream & out, const shape & s) {
    return out << s.num_rows << " rows, " << s.num_cells << " cells of " << cell_type_name(s.k) << " " << s.d_k << ", "
               << cell_type_name(s.v) << " " << s.d_v << " in runs of " << s.run_cells << ", mask " << static_cast<int>(s.mask)
               << ", logits " << s.logits << ", softcap " << s.softcap << ", sinks " << s.sinks << ", " << values_name(s.keys) << ", "
               << values_name(s.vals) << " * " << s.value_size;
}

inline float mask_value(const shape & s, int64_t r, int64_t c) {
    const auto distance = static_cast<float>(s.num_cells - s.num_rows + r - c);
    const auto dice = static_cast<int>(static_cast<uint64_t>(r * 7919 + c * 104729 + 1) * 0x9E3779B97F4A7C15u >> 60);
    const bool hidden_row = r % 4 == 3, hidden_block = r % 2 && c / attention_block % 3 == 1, for_odd_rows = r % 2 == 0 && c % 64 == 13;
    switch (s.mask) {
        case masks::none: return 0;
        case masks::causal: return distance < 0 ? -inf : 0;
        case masks::holes: return hidden_row || hidden_block || for_odd_rows || c % 64 == 5 || dice < 5 ? -inf : 0;
        case masks::alibi: return distance < 0 ? -inf : -distance;
        case masks::finite: return dice < 2 ? -inf : static_cast<float>(dice - 9);
    }
    return nan;
}

// Memory of one state, or scratch: starts at a multiple of 64, ends at a closed page, full of NaN.
struct fenced_floats {
    fenced_rows memory;
    explicit fenced_floats(int64_t n) : memory(1, 4 * n, 4 * n, -4 * n & 63) {}
    operator float *() { return memory.row<float>(0); }
};
struct part {
    fenced_floats memory;
    attention_state state;
    explicit part(const attention_args & a)
        : memory(attention_state_floats(state_shape_of(a))), state(attention_state_at(memory, state_shape_of(a))) {
        attention_begin(a, state);
    }
};

struct scene {
    const shape of;
    store k, v;
    fenced_rows q, out, mask, sight;
    std::vector<attention_row> rows;
    attention_args args;
    std::deque<attention_packing> runs;
    std::set<int64_t> evicted;

    scene(const shape & s, isa token)
        : of(s), k(s.k, s.d_k, s.num_cells, s.run_cells, s.keys, 1, 0, token, s.turned, s.seal_all, s.means, s.balanced),
          v(s.v, s.d_v, s.num_cells, s.run_cells, s.vals, s.value_size, 1 << 20, token, s.turned, s.seal_all, s.means), q(s.num_rows, 4 * s.d_k, 4 * s.d_k + 4, 4),
          out(s.num_rows, 4 * s.d_v, 4 * s.d_v + 4, 4), mask(s.num_rows, 2 * s.num_cells, 2 * s.num_cells + 2, 2),
          sight(s.num_rows, s.num_blocks(), s.num_blocks() + 1) {
        for (int64_t r = 0; r < s.num_rows; r++) {
            const float sinks[] = {0.5f, -inf, 100, -3}, slope = s.mask == masks::alibi ? 0.25f : s.mask == masks::finite ? 0.75f : 1;
            rows.push_back({.q = q.row<float>(r), .out = out.row<float>(r), .mask = s.mask == masks::none ? nullptr : mask.row<uint16_t>(r),
                            .sight = sight.row<uint8_t>(r), .slope = slope / (1 + r % 2), .sink = s.sinks ? sinks[r / 2 % 4] : -inf});
            fill(values::normal, q.row<float>(r), s.d_k, 1 + r);
            std::memset(sight.row<uint8_t>(r), 0, s.num_blocks());
            for (int64_t c = s.num_cells - 1, left = s.recent ? attention_window : 0; c >= 0; c--) {
                const float x = mask_value(s, r, c);
                mask.row<uint16_t>(r)[c] = half_of(x);
                uint8_t & bits = sight.row<uint8_t>(r)[c / attention_block];
                if (x != 0) bits |= sight_masked;
                if (x != -inf) bits |= left-- > 0 ? sight_visible | sight_recent : sight_visible;
            }
        }
        args = {.tiles = find_attention(k.type, isa_bit(token))->tiles, .k = k.view(), .v = v.view(), .num_cells = s.num_cells,
                .rows = rows.data(), .num_rows = s.num_rows, .scale = 1 / std::sqrt(static_cast<float>(s.d_k)), .softcap = s.softcap,
                .int8 = false, .rotate_q = 0, .rotate_k = 0, .rotate_v = 0, .rotate_out = 0, .sealed_k = k.turn, .sealed_v = v.turn,
                .balance = k.balance.empty() ? nullptr : k.balance.data(), .rotate = rotate<float>};
        double largest = 0;
        for (int64_t i = 0; i < s.num_rows * s.num_cells && s.logits > 0; i++) {
            largest = std::max(largest, std::fabs(logit(i / s.num_cells, i % s.num_cells)));
        }
        if (largest > 0) args.scale *= s.logits / static_cast<float>(largest);
    }
    bool hides(int64_t r, int64_t c) const { return evicted.count(c) != 0 || (rows[r].mask && rows[r].mask[c] == half_of(-inf)); }
    // Evicts cells of the blocks from `first` on, so that `pages` pages are left.
    void pack(int64_t first, int64_t num_blocks, int64_t pages) {
        attention_packing & run = runs.emplace_back(attention_packing{first, num_blocks, {}});
        int64_t left = pages * attention_block;
        for (int64_t c = 0; c < num_blocks * attention_block; c++) {
            const int64_t to_come = num_blocks * attention_block - c;
            const bool keep = left == to_come || (left > 0 && static_cast<uint64_t>(c + 1) * 0x9E3779B97F4A7C15u >> 62 != 0);
            if (keep) run.kept[c / attention_block] |= uint64_t{1} << c % attention_block, left--;
            else evicted.insert(first * attention_block + c);
        }
        k.pack(run), v.pack(run);
    }
    double logit(int64_t r, int64_t c) const {
        double sums[4] = {};
        for (int64_t i = 0; i < of.d_k; i++) sums[i % 4] += rows[r].q[i] * k.worth[c * of.d_k + i];
        return args.scale * (sums[0] + sums[1] + sums[2] + sums[3]);
    }

    // What the rounding of attend_block adds on sealed pages (contract), as a share of the largest |V|: six times the standard deviation of
    // sums of roundings that are evenly distributed within a step.
    double rounding(int64_t r) const {
        if (args.tiles->token != isa::avx512_vnni) return 0;
        std::vector<float> q(rows[r].q, rows[r].q + of.d_k);
        float most = 1; // that keys are multiplied by
        for (size_t i = 0; i < k.balance.size(); i++) q[i] /= k.balance[i], most = std::max(most, k.balance[i]);
        if (k.turn > 0) rotate(q.data(), of.d_k / k.turn, k.turn);
        double step = 0, longest = 0, of_values = 0;
        for (const float x : q) step = std::max(step, args.scale * std::fabs(x) / 29184.0);
        for (int64_t c = 0; c < of.num_cells; c++) {
            double squares = 0;
            for (int64_t i = 0; i < of.d_k && k.is_sealed(c); i++) squares += k.worth[c * of.d_k + i] * k.worth[c * of.d_k + i];
            longest = std::max(longest, std::sqrt(squares));
            if (v.is_sealed(c)) of_values = 0x1p-12;
        }
        const double logit = 6 / std::sqrt(12) * step * longest * most; // moves p by as much, and the output by that times |V - output|
        return 2 * std::expm1(logit) + of_values;
    }
    double allowed(int64_t r, way how) const { return how == way::int8 ? rough : how == way::few ? exact + rounding(r) : exact; }

    std::vector<expected> oracle(int64_t r, double allowed) const {
        std::vector<double> s(of.num_cells, -INFINITY);
        double largest = -INFINITY, sum = 0;
        for (int64_t c = 0; c < of.num_cells; c++) {
            if (hides(r, c)) continue;
            const double x = logit(r, c), bias = rows[r].mask ? half_value(reinterpret_cast<const uint8_t *>(rows[r].mask + c)) : 0;
            s[c] = (of.softcap ? of.softcap * std::tanh(x / of.softcap) : x) + rows[r].slope * bias;
            largest = std::max(largest, s[c]);
        }
        std::vector<expected> want(of.d_v, {0, 0});
        if (largest == -INFINITY) return want; // sees nothing: exactly 0
        largest = std::max<double>(largest, rows[r].sink);
        for (int64_t c = 0; c < of.num_cells; c++) {
            if (hides(r, c)) continue;
            const double p = std::exp(s[c] - largest), *row = v.worth.data() + c * of.d_v;
            sum += p;
            for (int64_t j = 0; j < of.d_v; j++) want[j] = {want[j].value + p * row[j], std::max(want[j].bound, std::fabs(row[j]))};
        }
        sum += std::exp(rows[r].sink - largest);
        if (v.turn > 0) { // transforms spread the errors of an element over its row
            double most = 0;
            for (const expected & e : want) most = std::max(most, e.bound);
            for (expected & e : want) e.bound = most;
        }
        for (expected & e : want) e = {e.value / sum, allowed * e.bound + 1e-30};
        return want;
    }

    attention_counts add_tiles(const attention_state & state) {
        fenced_floats scratch(attention_scratch_floats(of.num_rows, of.d_k, of.d_v));
        return attend_tiles(args, state, scratch);
    }
    void add_blocks(const attention_state & state, int64_t first = 0, int64_t step = 1) const { // every `step`th, from `first` on
        for (int64_t block = first; block < of.num_blocks(); block += step) attend_block(args, state, block, block % 3, 3);
    }
    void finish(const attention_state * states, int64_t num_states, const std::vector<int64_t> & cuts) {
        for (const attention_row & row : rows) std::fill_n(row.out, of.d_v, nan);
        for (size_t i = cuts.size() - 1; i > 0; i--) attention_finish(args, states, num_states, cuts[i - 1], cuts[i]);
    }
    attention_counts attend(way how) {
        const attention_args before = args;
        args.int8 = how == way::int8;
        if (how != way::few && k.turn > 0) args.rotate_q = args.rotate_k = k.turn;
        if (how != way::few && v.turn > 0) args.rotate_v = args.rotate_out = v.turn;
        if (how == way::int8) {
            if (takes(k.type, 1)) args.rotate_q = args.rotate_k = of.d_k & -of.d_k; // other types stand for cells that are stored rotated
            if (takes(v.type, 1)) args.rotate_v = args.rotate_out = of.d_v & -of.d_v;
        }
        part whole(args);
        attention_counts counts = {};
        if (how == way::few) add_blocks(whole.state);
        else counts = add_tiles(whole.state);
        finish(&whole.state, 1, {0, of.num_rows});
        args = before;
        return counts;
    }
    std::vector<float> result() const {
        std::vector<float> all;
        for (const attention_row & row : rows) all.insert(all.end(), row.out, row.out + of.d_v);
        return all;
    }
    void expect_right(way how = way::tiles) const {
        for (int64_t r = 0; r < of.num_rows; r++) ASSERT_TRUE(within(rows[r].out, oracle(r, allowed(r, how)))) << "row " << r << " of " << of;
        ASSERT_TRUE(out.gaps_untouched()) << of;
    }
};

} // namespace alloy::test
