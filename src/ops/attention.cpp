#include "ops/attention.h"

#include "base/arena.h"
#include "base/counters.h"
#include "host/ops.h"
#include "kernels/rowwise/rowwise.h"
#include "ops/operands.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace alloy::ops {
namespace {

using host::tensor;

// Up to so many rows of one KV head, reading cells where they lie is faster than repacking them for tiles.
constexpr int64_t few_rows = 16;
// INT8 mode is for prompts. A few tokens at a time, decoding and drafts, wait for memory, not for products.
constexpr int64_t most_tokens_in_f32 = 16;
// Pieces for each thread: enough to even out what neighbours on the machine take away.
constexpr int64_t pieces_a_thread = 4;
// Cells of few rows: a piece has at least so many blocks, unless threads would go without, since each piece starts a state.
constexpr int64_t fewest_blocks_of_piece = 4;
constexpr int64_t most_pieces = 256;
// Rows of a piece of a prompt: queries and outputs of so many floats stay in L2, and repacking the cells costs little beside their use.
constexpr int64_t floats_of_piece = 65536;
constexpr int64_t fewest_rows_of_piece = 64;

int64_t max_rows_of_piece(int64_t d) { return std::max(floats_of_piece / d, fewest_rows_of_piece); }

int64_t max_rows(const attention_shape & s) {
    return std::min(s.tokens * s.group, std::max(max_rows_of_piece(std::max(s.d_k, s.d_v)) / s.group, int64_t(1)) * s.group);
}

bool is_few(const attention_shape & s) { return s.tokens * s.group <= few_rows; }

// A piece of few rows: all KV heads of one stream.
struct few_piece {
    attention_row * rows; // [kv_heads][rows_of_head]
    float * states;       // [kv_heads] of floats_of_state
    int64_t rows_of_head;
    attention_state_shape of_state;
    int64_t floats_of_state;
    few_piece(arena m, const attention_shape & s, const attention_state_shape & state_shape)
        : rows_of_head(s.tokens * s.group), of_state(state_shape), floats_of_state(attention_state_floats(state_shape)) {
        rows = m.take<attention_row>(s.kv_heads * rows_of_head);
        states = m.take<float>(s.kv_heads * floats_of_state);
        floats = m.floats();
    }
    attention_row * rows_of(int64_t head) const { return rows + head * rows_of_head; }
    attention_state state(int64_t head) const { return attention_state_at(states + head * floats_of_state, of_state); }
    int64_t floats; // all of it
};

int64_t few_pieces(int64_t blocks, int64_t num_threads) {
    const int64_t wanted = std::max(num_threads, std::min(pieces_a_thread * num_threads, blocks / fewest_blocks_of_piece));
    return std::min({blocks, wanted, most_pieces});
}

// Tiles turn all cells the same way, and need one state.
attention_state_shape tile_state(const attention_shape & s, int64_t rows) { return {rows, s.d_k, s.d_v, false, false, false}; }

// What a thread works in for pieces of many rows.
struct many_piece {
    attention_row * rows;
    float *state, *scratch;
    int64_t floats; // all of it
    many_piece(arena m, const attention_shape & s) {
        const int64_t most = max_rows(s);
        rows = m.take<attention_row>(most);
        state = m.take<float>(attention_state_floats(tile_state(s, most)));
        scratch = m.take<float>(attention_scratch_floats(most, s.d_k, s.d_v));
        floats = m.floats();
    }
};

bool has_row(const tensor * t, size_t element) { return t->nb[0] == element; }

// ALiBi: the slope of a head's mask.
float slope_of(int64_t head, int64_t heads, float max_bias) {
    if (max_bias <= 0) return 1;
    const int64_t power = int64_t(1) << static_cast<int64_t>(std::floor(std::log2(static_cast<double>(heads))));
    if (head < power) return std::pow(std::pow(2.0f, -max_bias / static_cast<float>(power)), static_cast<float>(head + 1));
    return std::pow(std::pow(2.0f, -max_bias / 2 / static_cast<float>(power)), static_cast<float>(2 * (head - power) + 1));
}

// Whether a row's mask hides none of the cells that its token observes.
bool sees_run(const attention_row & row, const kv::sampled_token & t) {
    constexpr uint16_t hidden = 0xFC00; // -inf
    return row.mask == nullptr || std::count(row.mask + t.run_begin, row.mask + t.run_end, hidden) == 0;
}

void make_rows(const attention_call & call, int64_t state, int64_t first_token, int64_t num_tokens, attention_row * rows) {
    const attention_shape & s = call.shape;
    const tensor *q = call.node->src[0], *mask = call.node->src[3], *sinks = call.node->src[4];
    const int64_t stream = state / s.kv_heads, first_head = state % s.kv_heads * s.group;
    for (int64_t token = first_token; token < first_token + num_tokens; token++) {
        const int64_t sampled = call.sample != nullptr && call.sample->has(token) ? call.sample->place_of(token) : -1;
        for (int64_t head = first_head; head < first_head + s.group; head++, rows++) {
            rows->q = reinterpret_cast<const float *>(row_at(q, token, head, stream));
            rows->out = reinterpret_cast<float *>(row_at(call.out, head, token, stream));
            rows->mask = mask == nullptr ? nullptr : reinterpret_cast<const uint16_t *>(row_at(mask, token, head % mask->ne[2], stream % mask->ne[3]));
            rows->sight = call.map->row(token, head, stream);
            rows->slope = slope_of(head, s.heads, call.max_bias);
            rows->sink = sinks == nullptr ? -INFINITY : static_cast<const float *>(sinks->data)[head];
            rows->log_sum = sampled >= 0 ? &call.sample->log_sum[static_cast<size_t>(head * call.sample->tokens() + sampled)] : nullptr;
        }
    }
}

// Keeps the rows that were to be sampled, once they are finished.
void keep_sample(const attention_call & call, const attention_row * rows, int64_t num_rows) {
    if (call.sample == nullptr || call.sample->which.empty()) return;
    kv::attention_sample & kept = *call.sample;
    const attention_shape & s = call.shape;
    for (const attention_row * row = rows; row < rows + num_rows; row++) {
        if (row->log_sum == nullptr) continue;
        const auto at = row->log_sum - kept.log_sum.data();
        if (at == kept.tokens() - 1) {
            kept.sees_block.resize(static_cast<size_t>(call.map->num_blocks));
            for (size_t b = 0; b < kept.sees_block.size(); b++) kept.sees_block[b] = row->sight[b] & sight_visible && !(row->sight[b] & sight_masked);
        }
        kept.sees_run[static_cast<size_t>(at)] = sees_run(*row, kept.which[static_cast<size_t>(at % kept.tokens())]);
        std::copy_n(row->q, s.d_k, kept.q.data() + at * s.d_k);
        if (kept.d_v == 0) continue;
        float * out = kept.out.data() + at * s.d_v;
        std::copy_n(row->out, s.d_v, out);
        // Transforms of the host, undone here, are the frame that quantised values lie in.
        if (is_quantised(call.values.declared) && call.rotate_out > 0) hadamard_in_place(out, s.d_v / call.rotate_out, call.rotate_out);
    }
}

attention_args args_of(const attention_call & call, int64_t state, const attention_row * rows, int64_t num_rows) {
    const int64_t stream = state / call.shape.kv_heads, head = state % call.shape.kv_heads;
    return {.tiles = call.tiles, .k = call.keys.of(stream, head), .v = call.values.of(stream, head), .num_cells = call.keys.cells,
            .rows = rows, .num_rows = num_rows, .scale = call.scale, .softcap = call.softcap, .int8 = call.int8,
            .rotate_q = call.rotate_q, .rotate_k = call.rotate_k, .rotate_v = call.rotate_v, .rotate_out = call.rotate_out,
            .sealed_k = call.sealed_k, .sealed_v = call.sealed_v,
            .balance = call.keys.balance != nullptr ? call.keys.balance->of(head) : nullptr, .rotate = hadamard_in_place};
}

void count_tiles(const attention_counts & counts) {
    count(counter::attention_int8_tiles, static_cast<uint64_t>(counts.int8_tiles));
    count(counter::attention_f32_tiles, static_cast<uint64_t>(counts.f32_tiles));
    count(counter::attention_unsafe_tiles, static_cast<uint64_t>(counts.unsafe_tiles));
}

few_piece few_piece_at(const attention_call & call, int64_t piece) {
    const attention_shape & s = call.shape;
    const attention_state_shape state{s.tokens * s.group, s.d_k, s.d_v, call.sealed_k > 0, call.sealed_v > 0};
    const int64_t floats = few_piece(arena(nullptr), s, state).floats;
    return few_piece(arena(call.memory.data + piece * floats), s, state);
}

// Pieces: (stream, range of blocks), each for all heads, whose cells lie side by side.
void run_few(const attention_call & call, int num_threads) {
    const attention_shape & s = call.shape;
    const int64_t pieces = few_pieces(call.map->num_blocks, num_threads);
    for (int64_t piece; (piece = call.work.take(pieces * s.streams, num_threads)) >= 0;) {
        const few_piece mine = few_piece_at(call, piece);
        const int64_t first_state = piece / pieces * s.kv_heads, part = piece % pieces;
        const auto args = [&](int64_t head) { return args_of(call, first_state + head, mine.rows_of(head), mine.rows_of_head); };
        for (int64_t head = 0; head < s.kv_heads; head++) {
            make_rows(call, first_state + head, 0, s.tokens, mine.rows_of(head));
            attention_begin(args(head), mine.state(head));
        }
        const int64_t end = call.map->num_blocks * (part + 1) / pieces;
        for (int64_t block = call.map->num_blocks * part / pieces; block < end; block++) {
            for (int64_t head = 0; head < s.kv_heads; head++) attend_block(args(head), mine.state(head), block, head, s.kv_heads);
        }
    }
}

// Pieces: (stream, KV head, range of tokens), the last tokens first: they see the most cells.
void run_many(const attention_call & call, int thread, int num_threads) {
    const attention_shape & s = call.shape;
    const int64_t floats = many_piece(arena(nullptr), s).floats;
    const many_piece mine(arena(call.memory.data + thread * floats), s);
    int64_t tokens = max_rows(s) / s.group;
    const int64_t wanted = (s.tokens * s.states + pieces_a_thread * num_threads - 1) / (pieces_a_thread * num_threads);
    tokens = std::min(tokens, std::max({wanted, fewest_rows_of_piece / s.group, int64_t(1)}));
    const int64_t pieces = (s.tokens + tokens - 1) / tokens;
    for (int64_t piece; (piece = call.work.take(pieces * s.states, num_threads)) >= 0;) {
        const int64_t state = piece % s.states, part = pieces - 1 - piece / s.states;
        const int64_t first = s.tokens * part / pieces, num_tokens = s.tokens * (part + 1) / pieces - first;
        make_rows(call, state, first, num_tokens, mine.rows);
        const attention_args args = args_of(call, state, mine.rows, num_tokens * s.group);
        const attention_state at = attention_state_at(mine.state, tile_state(s, args.num_rows));
        attention_begin(args, at);
        count_tiles(attend_tiles(args, at, mine.scratch));
        attention_finish(args, &at, 1, 0, args.num_rows);
        keep_sample(call, mine.rows, args.num_rows);
    }
}

} // namespace

// --- the mask ---------------------------------------------------------------------------------------------------------------------------
mask_map make_mask_map(const tensor * node) {
    mask_map map;
    map.mask = node->src[3];
    map.num_cells = node->src[1]->ne[1];
    map.num_blocks = (map.num_cells + attention_block - 1) / attention_block;
    map.num_rows = map.mask == nullptr ? 1 : map.mask->ne[1] * map.mask->ne[2] * map.mask->ne[3];
    map.sight = std::make_unique<uint8_t[]>(static_cast<size_t>(map.num_rows * map.num_blocks));
    return map;
}

bool mask_map::serves(const tensor * node) const { return node->src[3] == mask && node->src[1]->ne[1] == num_cells; }

const uint8_t * mask_map::row(int64_t token, int64_t head, int64_t stream) const {
    if (mask == nullptr) return sight.get();
    return sight.get() + ((stream % mask->ne[3] * mask->ne[2] + head % mask->ne[2]) * mask->ne[1] + token) * num_blocks;
}

void mask_map::fill(int64_t begin, int64_t end) const {
    constexpr uint16_t hidden = 0xFC00; // -inf
    for (int64_t r = begin; r < end; r++) {
        const uint16_t * values = nullptr;
        if (mask != nullptr) {
            values = reinterpret_cast<const uint16_t *>(row_at(mask, r % mask->ne[1], r / mask->ne[1] % mask->ne[2], r / mask->ne[1] / mask->ne[2]));
        }
        int64_t recent = 0; // visible cells from the block on
        for (int64_t b = num_blocks - 1; b >= 0; b--) {
            const int64_t first = b * attention_block, n = std::min(attention_block, num_cells - first);
            uint16_t shown = 0, other = 0;
            int64_t visible = n;
            if (values != nullptr) {
                for (int64_t c = first; c < first + n; c++) {
                    shown |= values[c] ^ hidden;
                    other |= values[c] & 0x7FFF;
                }
                if (recent < attention_window && shown != 0 && other != 0) visible = n - std::count(values + first, values + first + n, hidden);
            } else {
                shown = 1;
            }
            uint8_t bits = shown == 0 ? 0 : sight_visible;
            if (other != 0) bits |= sight_masked;
            if (shown != 0 && recent < attention_window) {
                bits |= sight_recent;
                recent += visible;
            }
            sight[static_cast<size_t>(r * num_blocks + b)] = bits;
        }
    }
}

// --- calls ------------------------------------------------------------------------------------------------------------------------------
bool can_run_attention(const tensor * node) {
    const tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3], *sinks = node->src[4];
    if (host::op_of(node) != host::op::flash_attn_ext || q == nullptr || k == nullptr || v == nullptr) return false;
    cell_type k_type, v_type;
    if (!cell_type_of_host(k->type, k_type) || !cell_type_of_host(v->type, v_type)) return false;
    if (find_attention(k_type) == nullptr || find_attention(v_type) == nullptr) return false;
    const auto fits = [](const tensor * t, cell_type type) {
        return t->ne[0] > 0 && t->ne[0] % 16 == 0 && t->ne[0] <= attention_max_d && cell_row_bytes(type, t->ne[0]) > 0 &&
               has_row(t, static_cast<size_t>(cell_type_bytes(type)));
    };
    const bool same_cells = std::equal(k->ne + 1, k->ne + host::max_dims, v->ne + 1) && k->ne[1] > 0 && k->ne[2] > 0;
    const bool queries_fit = same_cells && has_float_rows(q) && q->ne[0] == k->ne[0] &&
                             q->ne[2] % k->ne[2] == 0 && q->ne[3] == k->ne[3];
    const bool mask_fits = mask == nullptr || (mask->type == host::type_f16 && has_row(mask, 2) && mask->ne[0] >= k->ne[1] &&
                                               mask->ne[1] >= q->ne[1] && mask->ne[2] > 0 && mask->ne[3] > 0);
    const bool sinks_fit = sinks == nullptr || (has_float_rows(sinks) && sinks->ne[0] >= q->ne[2]);
    const bool out_fits = has_float_rows(node) && node->ne[0] == v->ne[0] && node->ne[1] == q->ne[2] &&
                          node->ne[2] == q->ne[1] && node->ne[3] == q->ne[3];
    return fits(k, k_type) && fits(v, v_type) && queries_fit && mask_fits && sinks_fit && out_fits;
}

attention_shape::attention_shape(const tensor * node)
    : d_k(node->src[1]->ne[0]), d_v(node->src[2]->ne[0]), tokens(node->src[0]->ne[1]), heads(node->src[0]->ne[2]), kv_heads(node->src[1]->ne[2]),
      group(heads / kv_heads), streams(node->src[0]->ne[3]), states(streams * kv_heads) {}

int64_t attention_memory_floats(const tensor * node, int max_threads) {
    const attention_shape s(node);
    const int64_t blocks = (node->src[1]->ne[1] + attention_block - 1) / attention_block;
    const attention_state_shape largest_state{s.tokens * s.group, s.d_k, s.d_v, true, true};
    if (is_few(s)) return few_pieces(blocks, max_threads) * s.streams * few_piece(arena(nullptr), s, largest_state).floats;
    return max_threads * many_piece(arena(nullptr), s).floats;
}

std::unique_ptr<attention_call> make_attention_call(const tensor * node, const tensor * out, const mask_map * map, kv::kv_view keys,
                                                    kv::kv_view values, attention_precision precision, int64_t rotate_out,
                                                    const attention_memory & memory) {
    const attention_shape s(node);
    auto call = std::make_unique<attention_call>();
    const cell_type k_type = keys.declared, v_type = values.declared;
    call->node = node;
    call->shape = s;
    call->out = out;
    call->map = map;
    call->tiles = find_attention(k_type)->tiles;
    call->scale = float_param(node, 0);
    call->max_bias = float_param(node, 1);
    call->softcap = float_param(node, 2);
    call->few = is_few(s);
    // A quantised or compressed cache is the user's consent to 8 bits. The host has rotated what quantised ones hold; the store rotates what it
    // seals itself.
    const auto eight_bits = [](const kv::kv_view & cells) { return cells.may_be_sealed || is_quantised(cells.declared); };
    const bool consent = eight_bits(keys) && eight_bits(values);
    call->int8 = s.tokens > most_tokens_in_f32 && (precision == attention_precision::int8 || (precision == attention_precision::automatic && consent));
    call->sealed_k = keys.may_be_sealed && !is_quantised(k_type) ? rotation_of(s.d_k) : 0;
    call->sealed_v = values.may_be_sealed && !is_quantised(v_type) ? rotation_of(s.d_v) : 0;
    const bool tiles = !call->few;
    call->rotate_q = call->rotate_k = tiles && (call->int8 || call->sealed_k > 0) && !is_quantised(k_type) ? rotation_of(s.d_k) : 0;
    call->rotate_v = tiles && (call->int8 || call->sealed_v > 0) && !is_quantised(v_type) ? rotation_of(s.d_v) : 0;
    call->rotate_out = rotate_out;
    if (call->rotate_v > 0) {
        // Transforms of one size undo one another. Rotated twice is a matter of cells that lie rotated though their type does not say so.
        if (rotate_out == 0) call->rotate_out = call->rotate_v;
        else if (call->sealed_v == 0) call->rotate_v = 0;
    }
    call->keys = std::move(keys);
    call->values = std::move(values);
    call->memory = memory;
    return call;
}

bool queries_lie_as_output(const tensor * node, const tensor * out) {
    const tensor * q = node->src[0];
    return q->data == out->data && q->ne[0] == out->ne[0] && q->nb[1] == out->nb[2] && q->nb[2] == out->nb[1] && (q->ne[3] == 1 || q->nb[3] == out->nb[3]);
}

void attention_call::run(int thread, int num_threads) const {
    num_threads = std::min(num_threads, memory.max_threads);
    if (thread >= num_threads) return;
    if (few) run_few(*this, num_threads);
    else run_many(*this, thread, num_threads);
}

void attention_call::join(int thread, int num_threads) const {
    const int64_t pieces = few_pieces(map->num_blocks, std::min(num_threads, memory.max_threads));
    for (int64_t i = thread; i < shape.states; i += num_threads) {
        attention_state seen[most_pieces];
        const int64_t first = i / shape.kv_heads * pieces, head = i % shape.kv_heads;
        for (int64_t p = 0; p < pieces; p++) seen[p] = few_piece_at(*this, first + p).state(head);
        const few_piece any = few_piece_at(*this, first); // all hold the same rows
        attention_finish(args_of(*this, i, any.rows_of(head), any.rows_of_head), seen, pieces, 0, any.rows_of_head);
        keep_sample(*this, any.rows_of(head), any.rows_of_head);
    }
}

} // namespace alloy::ops
