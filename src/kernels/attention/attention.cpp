#include "kernels/attention/attention.h"

#include "base/arena.h"
#include "base/check.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

namespace alloy {
namespace {

// Bytes from cell to cell of a block.
int64_t stride_of(const attention_pages & from, int64_t block) {
    const cell_type type = from.pages[block].cells->type;
    return is_coded(type) ? cell_row_bytes(type, from.d) : from.stride;
}

int64_t cells_of_block(const attention_args & args, int64_t block) { return std::min(attention_block, args.num_cells - block * attention_block); }

// Rows as a page of one block sees them. Those of a packed page have masks of its cells.
class rows_of_page {
  public:
    // Up to attention_tile rows.
    rows_of_page(const attention_args & args, int64_t block, const attention_row * rows, int64_t num_rows)
        : rows_(rows), first_cell_(block * attention_block) {
        const attention_packing * packing = args.k.pages[block].packing;
        if (packing == nullptr) return;
        rows_ = own_;
        first_cell_ = 0;
        for (int64_t r = 0; r < num_rows; r++) {
            own_[r] = rows[r];
            own_[r].sight = sight_ + r;
            sight_[r] = 0;
            for (int64_t b = 0; b < packing->num_blocks; b++) sight_[r] |= rows[r].sight[packing->first_block + b];
            if ((sight_[r] & sight_masked) != 0) own_[r].mask = gather(*packing, block - packing->first_block, rows[r].mask, masks_[r]);
        }
    }
    rows_of_page(const rows_of_page &) = delete;
    const attention_row * rows() const { return rows_; }
    int64_t first_cell() const { return first_cell_; } // of the page, for masks and sight
    bool sees(int64_t r) const { return (rows_[r].sight[first_cell_ / attention_block] & sight_visible) != 0; }

  private:
    // The mask of the cells that page number `page` of a packed run holds.
    static const uint16_t * gather(const attention_packing & packing, int64_t page, const uint16_t * mask, uint16_t * to) {
        int64_t skip = page * attention_block, taken = 0;
        for (int64_t b = 0; b < packing.num_blocks && taken < attention_block; b++) {
            const uint16_t * from = mask + (packing.first_block + b) * attention_block;
            for (uint64_t kept = packing.kept[b]; kept != 0 && taken < attention_block; kept &= kept - 1) {
                if (skip-- > 0) continue;
                to[taken++] = from[std::countr_zero(kept)];
            }
        }
        return to;
    }

    const attention_row * rows_;
    int64_t first_cell_;
    attention_row own_[attention_tile];
    uint8_t sight_[attention_tile];
    uint16_t masks_[attention_tile][attention_block];
};

void add_to_rows(const float * x, int64_t num_rows, int64_t d, float * rows) {
    for (int64_t r = 0; r < num_rows; r++) {
        for (int64_t i = 0; i < d; i++) rows[r * d + i] += x[i];
    }
}

// One block of cells in the forms that tiles read, each made when the first tile asks for it.
class repacked_block {
  public:
    repacked_block(const attention_args & args, arena & memory)
        : args_(args), k_rows_(memory.take<float>(attention_block * args.k.d)), v_rows_(memory.take<float>(attention_block * args.v.d)),
          k_panel_(memory.take<float>(attention_block * args.k.d)), codes_(memory.take<float>(attention_block * args.k.d / 4)) {
        keys_.codes = memory.take<uint8_t>(attention_block * args.k.d);
        keys_.scales = memory.take<float>(attention_block);
        values_.codes = memory.take<int8_t>(attention_block * args.v.d);
        values_.scales = memory.take<float>(attention_block);
    }

    void move_to(int64_t block) {
        block_ = block;
        n_ = cells_of_block(args_, block);
        expanded_ = packed_f32_ = packed_int8_ = false;
    }
    int64_t cells() const { return n_; }

    const float * key_panel() {
        expand();
        if (!packed_f32_) args_.tiles->pack_keys(k_rows_, args_.k.d, k_panel_);
        packed_f32_ = true;
        return k_panel_;
    }
    const float * value_panel() {
        expand();
        return v_rows_;
    }
    const int8_keys & keys() {
        pack_int8();
        return keys_;
    }
    const int8_values & values() {
        pack_int8();
        return values_;
    }

  private:
    void expand() {
        if (expanded_) return;
        expanded_ = true;
        expand(args_.k, args_.rotate_k, args_.sealed_k, args_.balance, k_rows_);
        expand(args_.v, args_.rotate_v, args_.sealed_v, nullptr, v_rows_);
    }
    void expand(const attention_pages & from, int64_t group, int64_t sealed, const float * balance, float * rows) const {
        const attention_page & page = from.pages[block_];
        page.cells->expand(page.data, stride_of(from, block_), n_, from.d, rows);
        const bool turned = sealed > 0 && is_coded(page.cells->type);
        if (page.mean != nullptr) add_to_rows(page.mean, n_, from.d, rows);
        if (turned) return;
        for (int64_t c = 0; c < n_ && balance != nullptr; c++) {
            for (int64_t i = 0; i < from.d; i++) rows[c * from.d + i] *= balance[i];
        }
        if (group > 0) args_.rotate(rows, n_ * from.d / group, group);
    }
    void pack_int8() {
        if (packed_int8_) return;
        packed_int8_ = true;
        expand();
        args_.tiles->pack_int8_keys(k_rows_, args_.k.d, n_, codes_, keys_);
        args_.tiles->pack_int8_values(v_rows_, args_.v.d, n_, values_);
    }

    const attention_args & args_;
    int64_t block_ = 0, n_ = 0;
    bool expanded_ = false, packed_f32_ = false, packed_int8_ = false;
    float *k_rows_, *v_rows_, *k_panel_, *codes_;
    int8_keys keys_{};
    int8_values values_{};
};

// What attend_tiles works in.
struct tile_scratch {
    repacked_block packed;
    float *s, *alpha, *weight; // of a tile
    uint8_t * codes;
    int8_queries queries{};
    tile_scratch(const attention_args & args, arena memory) : packed(args, memory) {
        s = memory.take<float>(attention_tile * attention_block);
        alpha = memory.take<float>(attention_tile);
        weight = memory.take<float>(attention_tile);
        codes = memory.take<uint8_t>(attention_tile * attention_block);
        queries.num_groups = int8_query_groups(args.k.d);
        queries.codes = memory.take<int8_t>(args.num_rows * args.k.d);
        queries.scales = memory.take<float>(args.num_rows * queries.num_groups);
        queries.sums = memory.take<int32_t>(args.num_rows * queries.num_groups);
        queries.errors = memory.take<float>(2 * args.num_rows);
        floats = memory.floats();
    }
    int64_t floats; // all of it
};

attention_sums take_sums(arena & memory, const attention_state_shape & shape) {
    attention_sums s;
    s.m = memory.take<float>(shape.num_rows);
    s.l = memory.take<float>(shape.num_rows * 16);
    s.o = memory.take<float>(shape.num_rows * shape.d_v);
    return s;
}

attention_state take_state(arena & memory, const attention_state_shape & shape) {
    attention_state s{};
    s.q = s.q_sealed = memory.take<float>(shape.num_rows * shape.d_k);
    if (shape.sealed_k) s.q_sealed = memory.take<float>(shape.num_rows * shape.d_k);
    if (shape.few) s.q_codes = memory.take<float>(shape.num_rows * coded_query_floats(shape.d_k));
    s.mean = memory.take<const float *>(1);
    s.of_mean = memory.take<float>(shape.num_rows);
    s.seen = take_sums(memory, shape);
    if (shape.sealed_v) s.sealed = take_sums(memory, shape);
    return s;
}

void empty(const attention_sums & sums, int64_t num_rows, int64_t d) {
    std::fill_n(sums.m, num_rows, -INFINITY);
    std::fill_n(sums.l, num_rows * 16, 0.0f);
    std::fill_n(sums.o, num_rows * d, 0.0f);
}

void unbalance(const attention_args & args, float * q) {
    for (int64_t r = 0; r < args.num_rows && args.balance != nullptr; r++) {
        for (int64_t i = 0; i < args.k.d; i++) q[r * args.k.d + i] /= args.balance[i];
    }
}

// Whether the logits of these rows against this block may be computed from 8-bit codes.
bool is_safe(const int8_queries & q, int64_t first, int64_t num_rows, const int8_keys & keys, const int8_values & values) {
    if (!keys.finite || !values.finite) return false;
    for (int64_t r = first; r < first + num_rows; r++) {
        const float deviation = q.errors[2 * r] * keys.largest_norm + q.errors[2 * r + 1] * keys.largest_scale;
        if (!(deviation <= attention_error_limit)) return false;
    }
    return true;
}

} // namespace

const char * cell_type_name(cell_type type) { return type < cell_type::count ? traits_of_cells[static_cast<int>(type)].name : "?"; }

bool cell_type_of_host(int host_type, cell_type & type) {
    for (int i = 0; i < static_cast<int>(cell_type::count); i++) {
        if (traits_of_cells[i].host_type != host_type || host_type == coded_cells) continue;
        type = static_cast<cell_type>(i);
        return true;
    }
    return false;
}

cell_type cell_type_of_codec(kv_codec codec) {
    return static_cast<cell_type>(static_cast<int>(cell_type::count) - static_cast<int>(kv_codec::count) + static_cast<int>(codec));
}
bool is_coded(cell_type type) { return traits_of_cells[static_cast<int>(type)].host_type == coded_cells; }

int64_t cell_type_bytes(cell_type type) { return traits_of_cells[static_cast<int>(type)].bytes; }
bool is_quantised(cell_type type) { return traits_of_cells[static_cast<int>(type)].elements > 1; }

int64_t cell_row_bytes(cell_type type, int64_t d) {
    const cell_traits & t = traits_of_cells[static_cast<int>(type)];
    return d % t.elements == 0 ? d / t.elements * t.bytes : 0;
}

const attention_cells * find_attention(cell_type type, isa_set allowed) {
#define ALLOY_KERNEL(cells, token) \
    if (type == cell_type::cells && isa_has(allowed, isa::token)) return &attention_##cells##_##token;
#include "kernels/attention/kernels.inc"
#undef ALLOY_KERNEL
    static_cast<void>(allowed);
    return nullptr;
}

int64_t attention_state_floats(const attention_state_shape & shape) {
    arena sizes(nullptr);
    take_state(sizes, shape);
    return sizes.floats();
}

attention_state attention_state_at(float * memory, const attention_state_shape & shape) {
    arena arrays(memory);
    return take_state(arrays, shape);
}

void attention_begin(const attention_args & args, const attention_state & state) {
    const int64_t d_k = args.k.d, d_v = args.v.d;
    ALLOY_EXPECT(args.num_rows >= 1 && d_k % 16 == 0 && d_v % 16 == 0 && d_k <= attention_max_d && d_v <= attention_max_d);
    const float scale = args.scale * log2_e;
    for (int64_t r = 0; r < args.num_rows; r++) {
        float * q = state.q + r * d_k;
        for (int64_t i = 0; i < d_k; i++) q[i] = args.rows[r].q[i] * scale;
    }
    const bool one_form = state.q_sealed == state.q;
    if (one_form) unbalance(args, state.q);
    if (args.rotate_q > 0) args.rotate(state.q, args.num_rows * d_k / args.rotate_q, args.rotate_q);
    if (!one_form) {
        std::copy_n(state.q, args.num_rows * d_k, state.q_sealed);
        unbalance(args, state.q_sealed);
        args.rotate(state.q_sealed, args.num_rows * d_k / args.sealed_k, args.sealed_k);
    }
    if (state.q_codes != nullptr && args.tiles->code_queries != nullptr) args.tiles->code_queries(state.q_sealed, args.num_rows, d_k, state.q_codes);
    *state.mean = nullptr;
    empty(state.seen, args.num_rows, d_v);
    if (state.sealed.m != nullptr) empty(state.sealed, args.num_rows, d_v);
}

namespace {

// What to read ahead during a block: the next one. Cells whose heads lie side by side are read in the order of memory, each head a share
// of them; others row by row.
attention_ahead ahead_of(const attention_pages & from, int64_t block, int64_t num_blocks, int64_t head, int64_t num_heads) {
    int64_t after = block + 1;
    while (after < num_blocks && from.pages[after].data == nullptr) after++;
    const attention_page & next = from.pages[after < num_blocks ? after : block];
    const int64_t row_bytes = cell_row_bytes(next.cells->type, from.d);
    if (is_coded(next.cells->type)) return {next.data, row_bytes};
    if (from.stride != row_bytes * num_heads) return {next.data, from.stride};
    return {next.data - head * row_bytes + head * attention_block * row_bytes, row_bytes};
}

} // namespace

namespace {

// Scores of rows [first, first + num_rows) against a block's keys.
void score_block(const attention_args & args, const attention_state & state, int64_t block, int64_t first, int64_t num_rows, const attention_ahead & next,
                 float * s) {
    const attention_page & k = args.k.pages[block];
    const bool coded = is_coded(k.cells->type), codes = coded && args.tiles->code_queries != nullptr;
    const float * q = codes ? state.q_codes : coded ? state.q_sealed : state.q;
    const int64_t q_floats = codes ? coded_query_floats(args.k.d) : args.k.d;
    k.cells->scores(q + first * q_floats, num_rows, args.k.d, k.data, stride_of(args.k, block), cells_of_block(args, block), next, s);
    if (k.mean == nullptr) return;
    if (k.mean != *state.mean) {
        *state.mean = k.mean;
        for (int64_t r = 0; r < args.num_rows; r++) {
            const float * of_row = state.q_sealed + r * args.k.d;
            state.of_mean[r] = std::inner_product(of_row, of_row + args.k.d, k.mean, 0.0f);
        }
    }
    for (int64_t r = 0; r < num_rows; r++) {
        for (int64_t c = 0; c < attention_block; c++) s[r * attention_block + c] += state.of_mean[first + r];
    }
}

// o[r] += sum_c p[r][c] * mean
void add_mean_values(const float * mean, const float * p, int64_t num_rows, int64_t d, float * o) {
    for (int64_t r = 0; r < num_rows; r++) {
        const float sum = std::accumulate(p + r * attention_block, p + (r + 1) * attention_block, 0.0f);
        for (int64_t j = 0; j < d; j++) o[r * d + j] += sum * mean[j];
    }
}

} // namespace

void attention_probabilities(const attention_args & args, const attention_state & state, int64_t block, float * p) {
    ALLOY_EXPECT(args.num_rows <= attention_tile && args.k.pages[block].data != nullptr && state.q_codes != nullptr);
    const rows_of_page here(args, block, args.rows, args.num_rows);
    const int64_t n = cells_of_block(args, block);
    score_block(args, state, block, 0, args.num_rows, ahead_of(args.k, block, block + 1, 0, 1), p);
    float m[attention_tile], l[attention_tile * 16] = {}, alpha[attention_tile]; // no exponent is larger than its sum's
    for (int64_t r = 0; r < args.num_rows; r++) m[r] = *args.rows[r].log_sum;
    args.tiles->softmax(p, {here.rows(), args.num_rows, here.first_cell(), n, args.softcap * log2_e, m, l, alpha});
}

void attend_block(const attention_args & args, const attention_state & state, int64_t block, int64_t head, int64_t num_heads) {
    ALLOY_EXPECT(args.rotate_k == 0 && args.rotate_v == 0 && state.q_codes != nullptr);
    const int64_t num_blocks = (args.num_cells + attention_block - 1) / attention_block, n = cells_of_block(args, block), d_v = args.v.d;
    const attention_page &k = args.k.pages[block], &v = args.v.pages[block];
    if (k.data == nullptr) return;
    const attention_ahead next_k = ahead_of(args.k, block, num_blocks, head, num_heads), next_v = ahead_of(args.v, block, num_blocks, head, num_heads);
    const attention_sums & sums = is_coded(v.cells->type) && state.sealed.m != nullptr ? state.sealed : state.seen;
    constexpr int64_t most = attention_tile;
    alignas(64) float s[most * attention_block], alpha[most];
    for (int64_t first = 0; first < args.num_rows; first += most) {
        const int64_t end = std::min(most, args.num_rows - first);
        const rows_of_page here(args, block, args.rows + first, end);
        // Neighbours that see something are taken together; with several sequences in one cache most rows see nothing of most blocks.
        for (int64_t i = 0, rows; i < end; i += std::max<int64_t>(rows, 1)) {
            for (rows = 0; i + rows < end && here.sees(i + rows);) rows++;
            if (rows == 0) continue;
            const int64_t r = first + i;
            score_block(args, state, block, r, rows, next_k, s);
            args.tiles->softmax(s, {here.rows() + i, rows, here.first_cell(), n, args.softcap * log2_e, sums.m + r, sums.l + 16 * r, alpha});
            v.cells->values(s, rows, d_v, v.data, stride_of(args.v, block), n, next_v, alpha, sums.o + r * d_v);
            if (v.mean != nullptr) add_mean_values(v.mean, s, rows, d_v, sums.o + r * d_v);
        }
    }
}

int64_t attention_scratch_floats(int64_t num_rows, int64_t d_k, int64_t d_v) {
    attention_args sizes{};
    sizes.num_rows = num_rows;
    sizes.k.d = d_k;
    sizes.v.d = d_v;
    return tile_scratch(sizes, arena(nullptr)).floats;
}

attention_counts attend_tiles(const attention_args & args, const attention_state & state, float * scratch) {
    ALLOY_EXPECT((args.sealed_k == 0 || args.rotate_k == args.sealed_k) && (args.sealed_v == 0 || args.rotate_v == args.sealed_v));
    const attention_tiles & tiles = *args.tiles;
    const int64_t d_k = args.k.d, d_v = args.v.d;
    const attention_sums & seen = state.seen;
    tile_scratch work(args, arena(scratch));
    repacked_block & packed = work.packed;
    const int8_queries & q8 = work.queries;
    float *s = work.s, *alpha = work.alpha;
    if (args.int8) tiles.quantize_queries(state.q, args.num_rows, d_k, q8);

    attention_counts counts{};
    for (int64_t block = 0; block * attention_block < args.num_cells; block++) {
        if (args.k.pages[block].data == nullptr) continue;
        packed.move_to(block);
        for (int64_t r = 0; r < args.num_rows; r += attention_tile) {
            const int64_t rows = std::min(attention_tile, args.num_rows - r);
            const rows_of_page here(args, block, args.rows + r, rows);
            uint8_t sight = 0;
            for (int64_t i = 0; i < rows; i++) sight |= here.rows()[i].sight[here.first_cell() / attention_block];
            if ((sight & sight_visible) == 0) continue;
            const attention_tile_rows tile{here.rows(),           rows,       here.first_cell(), packed.cells(),
                                           args.softcap * log2_e, seen.m + r, seen.l + 16 * r,   alpha};
            float * o = seen.o + r * d_v;
            bool int8 = args.int8 && (sight & sight_recent) == 0;
            if (int8 && !is_safe(q8, r, rows, packed.keys(), packed.values())) {
                int8 = false;
                counts.unsafe_tiles++;
            }
            if (int8) {
                counts.int8_tiles++;
                tiles.int8_scores(q8, r, rows, d_k, packed.keys(), s);
                tiles.int8_softmax(s, q8.num_groups == 1 ? q8.scales + r : nullptr, tile, packed.values(), work.codes, work.weight);
                tiles.int8_values(work.codes, work.weight, rows, d_v, packed.values(), alpha, o);
            } else {
                counts.f32_tiles++;
                tiles.tile_scores(state.q + r * d_k, rows, d_k, packed.key_panel(), s);
                tiles.softmax(s, tile);
                tiles.tile_values(s, rows, d_v, packed.value_panel(), alpha, o);
            }
        }
    }
    return counts;
}

namespace {

// Some of the sums that a row is joined from.
struct row_parts {
    const attention_state * states;
    int64_t num_states, row, d;
    template <class F> void each(F f) const {
        for (int64_t i = 0; i < num_states; i++) {
            f(states[i].seen, false);
            if (states[i].sealed.m != nullptr) f(states[i].sealed, true);
        }
    }
    // Adds the outputs that are (not) turned, relative to m.
    void add(bool turned, float m, float * out) const {
        each([&](const attention_sums & sums, bool is_turned) {
            if (is_turned != turned) return;
            const float factor = std::exp2(sums.m[row] - m), *o = sums.o + row * d;
            for (int64_t j = 0; j < d; j++) out[j] += factor * o[j];
        });
    }
};

} // namespace

void attention_finish(const attention_args & args, const attention_state * states, int64_t num_states, int64_t begin, int64_t end) {
    const int64_t d = args.v.d;
    for (int64_t r = begin; r < end; r++) {
        const attention_row & row = args.rows[r];
        const row_parts parts{states, num_states, r, d};
        float m = row.sink * log2_e;
        bool empty = true; // no cell was seen; l is NaN where a NaN was
        parts.each([&](const attention_sums & sums, bool) {
            m = std::max(m, sums.m[r]);
            empty = empty && sums.m[r] == -INFINITY && std::all_of(sums.l + 16 * r, sums.l + 16 * (r + 1), [](float x) { return x == 0; });
        });
        std::fill_n(row.out, d, 0.0f);
        if (empty && row.log_sum != nullptr) *row.log_sum = INFINITY; // no cell has a share
        if (empty) continue;
        if (m == -INFINITY) m = 0;
        float l = std::exp2(row.sink * log2_e - m);
        parts.each([&](const attention_sums & sums, bool) {
            const float factor = std::exp2(sums.m[r] - m);
            for (int64_t p = 0; p < 16; p++) l += factor * sums.l[16 * r + p];
        });
        if (row.log_sum != nullptr) *row.log_sum = m + std::log2(l);
        if (args.sealed_v > 0 && args.rotate_v == 0) {
            parts.add(true, m, row.out);
            args.rotate(row.out, d / args.sealed_v, args.sealed_v);
        }
        parts.add(false, m, row.out);
        for (int64_t j = 0; j < d; j++) row.out[j] /= l;
        if (args.rotate_out > 0) args.rotate(row.out, d / args.rotate_out, args.rotate_out);
    }
}

} // namespace alloy
