#include "kernels/attention/attention.h"

#include "base/arena.h"
#include "base/check.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace alloy {
namespace {

// One block of cells in the forms that tiles read, each made when the first tile asks for it.
class packed_block {
  public:
    packed_block(const attention_args & args, arena & memory)
        : args_(args), k_rows_(memory.take<float>(attention_block * args.d_k)), v_rows_(memory.take<float>(attention_block * args.d_v)),
          k_panel_(memory.take<float>(attention_block * args.d_k)), codes_(memory.take<float>(attention_block * args.d_k / 4)) {
        keys_.codes = memory.take<uint8_t>(attention_block * args.d_k);
        keys_.scales = memory.take<float>(attention_block);
        values_.codes = memory.take<int8_t>(attention_block * args.d_v);
        values_.scales = memory.take<float>(attention_block);
    }

    void move_to(const attention_run & run, int64_t block) {
        const int64_t first = block * attention_block;
        run_ = &run;
        first_ = first;
        n_ = std::min(attention_block, run.num_cells - first);
        expanded_ = packed_f32_ = packed_int8_ = false;
    }
    int64_t cells() const { return n_; }

    const float * key_panel() {
        expand();
        if (!packed_f32_) args_.k_cells->tiles->pack_keys(k_rows_, args_.d_k, k_panel_);
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
        args_.k_cells->expand(run_->k + first_ * run_->stride_k, run_->stride_k, n_, args_.d_k, k_rows_);
        args_.v_cells->expand(run_->v + first_ * run_->stride_v, run_->stride_v, n_, args_.d_v, v_rows_);
        rotate(k_rows_, args_.d_k, args_.rotate_k);
        rotate(v_rows_, args_.d_v, args_.rotate_v);
    }
    void rotate(float * rows, int64_t d, int64_t group) const {
        if (group > 0) args_.rotate(rows, n_ * d / group, group);
    }
    void pack_int8() {
        if (packed_int8_) return;
        packed_int8_ = true;
        expand();
        args_.k_cells->tiles->pack_int8_keys(k_rows_, args_.d_k, n_, codes_, keys_);
        args_.k_cells->tiles->pack_int8_values(v_rows_, args_.d_v, n_, values_);
    }

    const attention_args & args_;
    const attention_run * run_ = nullptr;
    int64_t first_ = 0, n_ = 0;
    bool expanded_ = false, packed_f32_ = false, packed_int8_ = false;
    float *k_rows_, *v_rows_, *k_panel_, *codes_;
    int8_keys keys_{};
    int8_values values_{};
};

// What attend_tiles works in.
struct tile_scratch {
    packed_block packed;
    float *s, *alpha, *weight; // of a tile
    uint8_t * codes;
    int8_queries queries{};
    tile_scratch(const attention_args & args, arena memory) : packed(args, memory) {
        s = memory.take<float>(attention_tile * attention_block);
        alpha = memory.take<float>(attention_tile);
        weight = memory.take<float>(attention_tile);
        codes = memory.take<uint8_t>(attention_tile * attention_block);
        queries.num_groups = int8_query_groups(args.d_k);
        queries.codes = memory.take<int8_t>(args.num_rows * args.d_k);
        queries.scales = memory.take<float>(args.num_rows * queries.num_groups);
        queries.sums = memory.take<int32_t>(args.num_rows * queries.num_groups);
        queries.errors = memory.take<float>(2 * args.num_rows);
        floats = memory.floats();
    }
    int64_t floats; // all of it
};

attention_state take_state(arena & memory, int64_t num_rows, int64_t d_k, int64_t d_v) {
    attention_state s;
    s.q = memory.take<float>(num_rows * d_k);
    s.m = memory.take<float>(num_rows);
    s.l = memory.take<float>(num_rows * 16);
    s.o = memory.take<float>(num_rows * d_v);
    return s;
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
        if (traits_of_cells[i].host_type != host_type) continue;
        type = static_cast<cell_type>(i);
        return true;
    }
    return false;
}

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

int64_t attention_state_floats(int64_t num_rows, int64_t d_k, int64_t d_v) {
    arena sizes(nullptr);
    take_state(sizes, num_rows, d_k, d_v);
    return sizes.floats();
}

attention_state attention_state_at(float * memory, int64_t num_rows, int64_t d_k, int64_t d_v) {
    arena arrays(memory);
    return take_state(arrays, num_rows, d_k, d_v);
}

void attention_begin(const attention_args & args, const attention_state & state) {
    ALLOY_EXPECT(args.num_rows >= 1 && args.d_k % 16 == 0 && args.d_v % 16 == 0 && args.d_k <= attention_max_d && args.d_v <= attention_max_d);
    const float scale = args.scale * log2_e;
    for (int64_t r = 0; r < args.num_rows; r++) {
        float * q = state.q + r * args.d_k;
        for (int64_t i = 0; i < args.d_k; i++) q[i] = args.rows[r].q[i] * scale;
    }
    if (args.rotate_q > 0) args.rotate(state.q, args.num_rows * args.d_k / args.rotate_q, args.rotate_q);
    std::fill_n(state.m, args.num_rows, -INFINITY);
    std::fill_n(state.l, args.num_rows * 16, 0.0f);
    std::fill_n(state.o, args.num_rows * args.d_v, 0.0f);
}

namespace {

// Cells whose heads lie side by side are read ahead in the order of memory, each head a share of them; others row by row.
attention_ahead ahead_of(const uint8_t * next, int64_t stride, int64_t row_bytes, int64_t head, int64_t num_heads) {
    if (stride != row_bytes * num_heads) return {next, stride};
    return {next - head * row_bytes + head * attention_block * row_bytes, row_bytes};
}

} // namespace

void attend_block(const attention_args & args, const attention_state & state, int64_t run, int64_t block, int64_t head, int64_t num_heads) {
    ALLOY_EXPECT(args.rotate_k == 0 && args.rotate_v == 0);
    const attention_run & cells = args.runs[run];
    const int64_t first = block * attention_block, n = std::min(attention_block, cells.num_cells - first);
    const int64_t cell_block = (cells.first_cell + first) / attention_block;
    const attention_tiles & tiles = *args.k_cells->tiles;
    const uint8_t *k = cells.k + first * cells.stride_k, *v = cells.v + first * cells.stride_v;
    const auto ahead = [&](const uint8_t * at, int64_t stride, const attention_cells & kernels, int64_t d) {
        return ahead_of(at + attention_block * stride, stride, cell_row_bytes(kernels.type, d), head, num_heads);
    };
    const attention_ahead next_k = ahead(k, cells.stride_k, *args.k_cells, args.d_k), next_v = ahead(v, cells.stride_v, *args.v_cells, args.d_v);
    constexpr int64_t most = attention_tile;
    alignas(64) float s[most * attention_block], alpha[most];
    // Neighbours that see something are taken together; with several sequences in one cache most rows see nothing of most blocks.
    const auto sees = [&](int64_t r) { return (args.rows[r].sight[cell_block] & sight_visible) != 0; };
    for (int64_t r = 0, rows; r < args.num_rows; r += std::max<int64_t>(rows, 1)) {
        for (rows = 0; rows < most && r + rows < args.num_rows && sees(r + rows);) rows++;
        if (rows == 0) continue;
        args.k_cells->scores(state.q + r * args.d_k, rows, args.d_k, k, cells.stride_k, n, next_k, s);
        tiles.softmax(s, {args.rows + r, rows, cells.first_cell + first, n, args.softcap * log2_e, state.m + r, state.l + 16 * r, alpha});
        args.v_cells->values(s, rows, args.d_v, v, cells.stride_v, n, next_v, alpha, state.o + r * args.d_v);
    }
}

int64_t attention_scratch_floats(int64_t num_rows, int64_t d_k, int64_t d_v) {
    attention_args sizes{};
    sizes.num_rows = num_rows;
    sizes.d_k = d_k;
    sizes.d_v = d_v;
    return tile_scratch(sizes, arena(nullptr)).floats;
}

attention_counts attend_tiles(const attention_args & args, const attention_state & state, float * scratch) {
    const attention_tiles & tiles = *args.k_cells->tiles;
    tile_scratch work(args, arena(scratch));
    packed_block & packed = work.packed;
    const int8_queries & q8 = work.queries;
    float *s = work.s, *alpha = work.alpha;
    if (args.int8) tiles.quantize_queries(state.q, args.num_rows, args.d_k, q8);

    attention_counts counts{};
    for (const attention_run * run = args.runs; run < args.runs + args.num_runs; run++) {
        for (int64_t block = 0; block * attention_block < run->num_cells; block++) {
            packed.move_to(*run, block);
            const int64_t first_cell = run->first_cell + block * attention_block, cell_block = first_cell / attention_block;
            for (int64_t r = 0; r < args.num_rows; r += attention_tile) {
                const int64_t rows = std::min(attention_tile, args.num_rows - r);
                uint8_t sight = 0;
                for (int64_t i = r; i < r + rows; i++) sight |= args.rows[i].sight[cell_block];
                if ((sight & sight_visible) == 0) continue;
                const attention_tile_rows tile{args.rows + r, rows, first_cell, packed.cells(), args.softcap * log2_e, state.m + r, state.l + 16 * r, alpha};
                float * o = state.o + r * args.d_v;
                bool int8 = args.int8 && (sight & sight_recent) == 0;
                if (int8 && !is_safe(q8, r, rows, packed.keys(), packed.values())) {
                    int8 = false;
                    counts.unsafe_tiles++;
                }
                if (int8) {
                    counts.int8_tiles++;
                    tiles.int8_scores(q8, r, rows, args.d_k, packed.keys(), s);
                    tiles.int8_softmax(s, q8.num_groups == 1 ? q8.scales + r : nullptr, tile, packed.values(), work.codes, work.weight);
                    tiles.int8_values(work.codes, work.weight, rows, args.d_v, packed.values(), alpha, o);
                } else {
                    counts.f32_tiles++;
                    tiles.tile_scores(state.q + r * args.d_k, rows, args.d_k, packed.key_panel(), s);
                    tiles.softmax(s, tile);
                    tiles.tile_values(s, rows, args.d_v, packed.value_panel(), alpha, o);
                }
            }
        }
    }
    return counts;
}

void attention_finish(const attention_args & args, const attention_state * states, int64_t num_states, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const attention_row & row = args.rows[r];
        float m = row.sink * log2_e;
        bool empty = true; // no cell was seen; l is NaN where a NaN was
        for (int64_t i = 0; i < num_states; i++) {
            m = std::max(m, states[i].m[r]);
            empty = empty && states[i].m[r] == -INFINITY && std::all_of(states[i].l + 16 * r, states[i].l + 16 * (r + 1), [](float x) { return x == 0; });
        }
        std::fill_n(row.out, args.d_v, 0.0f);
        if (empty) continue;
        if (m == -INFINITY) m = 0;
        float l = std::exp2(row.sink * log2_e - m);
        for (int64_t i = 0; i < num_states; i++) {
            const float factor = std::exp2(states[i].m[r] - m);
            const float * o = states[i].o + r * args.d_v;
            for (int64_t p = 0; p < 16; p++) l += factor * states[i].l[16 * r + p];
            for (int64_t j = 0; j < args.d_v; j++) row.out[j] += factor * o[j];
        }
        for (int64_t j = 0; j < args.d_v; j++) row.out[j] /= l;
        if (args.rotate_out > 0) args.rotate(row.out, args.d_v / args.rotate_out, args.rotate_out);
    }
}

} // namespace alloy
