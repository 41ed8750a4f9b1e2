// Family attention: softmax(Q K^T + mask) V over cells of any type, from one row of queries to whole prompts.
#pragma once
#include "base/isa.h"
#include "formats/kv_codec.h"
#include <cstddef>
#include <cstdint>

namespace alloy {

enum class cell_type : uint8_t {
#define ALLOY_CELL_TYPE(name, host, elements, bytes) name,
#include "kernels/attention/cell_types.inc"
#undef ALLOY_CELL_TYPE
    count
};
constexpr int coded_cells = -1; // host type of the codecs of sealed pages, of which the host knows nothing
struct cell_traits {
    const char * name;
    int host_type;
    int64_t elements, bytes; // of a block
};
constexpr cell_traits traits_of_cells[] = { // by cell_type
#define ALLOY_CELL_TYPE(name, host, elements, bytes) {#name, host, elements, bytes},
#include "kernels/attention/cell_types.inc"
#undef ALLOY_CELL_TYPE
};
const char * cell_type_name(cell_type type);
cell_type cell_type_of_codec(kv_codec codec);
bool is_coded(cell_type type); // a codec: pages of attention_block rows of codes, then a scale for each row (formats/kv_codec.h)
bool cell_type_of_host(int host_type, cell_type & type); // false: no kernel reads this type
int64_t cell_type_bytes(cell_type type);                 // of a block
int64_t cell_row_bytes(cell_type type, int64_t d);       // 0: d is no whole number of blocks
bool is_quantised(cell_type type);                       // stored in blocks of several elements

constexpr float log2_e = 1.44269504088896340736f;

// Cells are worked on in blocks: a page of the KV store, a tile of the prompt kernels.
constexpr int64_t attention_block = 64;
constexpr int64_t attention_tile = 24;    // rows of queries that tile kernels take at once, at most
constexpr int64_t attention_max_d = 576;  // head size, a multiple of 16
constexpr int64_t attention_window = 128; // most recent cells of a row that INT8 mode computes in f32

// What a row of the mask shows of one block.
enum attention_sight : uint8_t {
    sight_visible = 1, // a cell is not masked
    sight_masked = 2,  // the mask has another value than 0 somewhere
    sight_recent = 4,  // a visible cell is among the row's last attention_window
};

// One row of queries: one token in one query head.
struct attention_row {
    const float * q;        // [d_k]
    float * out;            // [d_v]
    const uint16_t * mask;  // f16, one a cell, or null. -inf hides the cell, whatever it holds
    const uint8_t * sight;  // attention_sight bits, one byte a block
    float slope;            // of the mask
    float sink;             // a logit without a cell; -inf: none
    float * log_sum = nullptr; // log2 of the sum of exp(s): where attention_finish puts it, or null
};

struct attention_tiles;
struct attention_cells;

// A run of blocks of which one head keeps some cells, in their order: so many whole pages, which take the places of the run's first blocks.
struct attention_packing {
    static constexpr int64_t max_blocks = 8;
    int64_t first_block, num_blocks;
    uint64_t kept[max_blocks]; // of each block; bit c: cell c
};

// Where one block of cells of one head lies, and the kernels that read it. No data: the place is left over in a packed run.
struct attention_page {
    const uint8_t * data;
    const attention_cells * cells;
    const attention_packing * packing = nullptr; // that the page is part of; the same for keys and values
    const float * mean = nullptr; // [d] of a sealed page: what was taken from every row before, in the transform of sealed pages. null: nothing
};

// The cells of one key or value head, block by block. Blocks of a codec are sealed pages, dense; other cells lie `stride` bytes apart, and
// only the last block may be shorter. Packed runs are sealed, and end before num_cells.
struct attention_pages {
    const attention_page * pages; // [(num_cells + 63) / 64]
    int64_t d;
    int64_t stride;
};

// CONTRACT attention
//   Computes    for each row r, over the cells c that its mask does not hide:
//                 x[c] = scale * sum_i q[i] K[c][i]                       i in [0, d_k)
//                 s[c] = (softcap ? softcap * tanh(x[c] / softcap) : x[c]) + slope * mask[c]
//                 out[j] = sum_c exp(s[c]) V[c][j] / (sum_c exp(s[c]) + exp(sink))       j in [0, d_v); 0 when every cell is hidden
//               A row may be computed in parts: each part keeps a state (m, l, o), attention_finish() joins them.
//   Shape       num_rows >= 1, d_k and d_v multiples of 16 up to attention_max_d, and of the block of their type; any number of cells
//   Alias       none
//   Alignment   natural for what a type stores: 4 B f32, 2 B others; state and scratch 64 B
//   Over-read   none; prefetched beyond
//   Numerics    exact mode: f32 throughout. |error| <= 1e-5 max_c |V[c][j]| for logits |x| <= 64, at every number of cells; where values
//               are rotated, of the largest over j.
//               attend_block on sealed pages, where the instruction set has code_queries (avx512_vnni): q, and P times the scales of
//               values, rounded to 16 bits; products, sums of a row and of a block in int32 (no saturation). A logit is off by at most
//               scale * max|q| * 2^-15.8 * sum_i |K[i]|, q and K as the page is transformed; what a block adds to the output by at most
//               2^-11 of the largest |V| times P in the block, V as the page is transformed.
//               INT8 mode (attend_tiles only): Q, K and V rounded to 8 bits, which wants them rotated; dots in int32 (no saturation),
//               logits, sums and outputs in f32; P in 8 bits with a scale for each row and block of cells, which holds V's scale of
//               each cell. avx2 has 7 bits for Q and P, neon_dotprod for P: int16 pairs and signed bytes leave no more.
//               The last attention_window cells of a row, and blocks where a bound of the logits' error exceeds
//               attention_error_limit, are computed as in exact mode.
//               NaN and Inf in hidden cells have no effect; in visible ones they give NaN in the rows that see them
//   Threads     a pure function of rows and cells; disjoint rows may run concurrently. `reproducible` for equal parts
//   Never       allocates, locks, logs, throws, reads globals or the environment. Takes up to 32 KiB of stack
struct attention_args {
    const attention_tiles * tiles; // kernels of one instruction set, as those of all pages
    attention_pages k, v;
    int64_t num_cells;
    const attention_row * rows;
    int64_t num_rows;
    float scale;
    float softcap;  // 0: none
    bool int8;      // INT8 mode
    // Walsh-Hadamard transforms of each so many neighbouring elements, a power of two from 16 on; 0: none. Queries and keys need the same,
    // values and output too: what comes rotated from outside needs none here. Cells are rotated by attend_tiles only.
    int64_t rotate_q, rotate_k, rotate_v, rotate_out;
    // The transforms in which sealed pages differ from the other cells; 0: none. attend_block keeps both kinds of queries and sums;
    // attend_tiles wants rotate_k and rotate_v to be the same then, and turns the other cells only.
    int64_t sealed_k, sealed_v;
    // [d_k] What sealed keys are multiplied by before they are transformed, channel by channel, and queries divided by; attend_tiles does that to all
    // keys. null: nothing. Wants sealed_k.
    const float * balance = nullptr;
    // Orthonormal transform of each of `num` groups of n elements in place (rowwise hadamard); null where nothing is rotated.
    void (*rotate)(float * x, int64_t num, int64_t n);
};

// Standard deviation of a logit, from rounding Q and K, above which INT8 mode computes a block in f32.
constexpr float attention_error_limit = 0.25f;

// What rows have seen so far.
struct attention_sums {
    float * m; // [num_rows] the reference that exponents are taken from: their maximum; in units of log2
    float * l; // [num_rows][16] sums of 2^(s - m), in 16 parts
    float * o; // [num_rows][d_v] sums of 2^(s - m) V
};

// State of rows that are computed in parts, in memory of the caller.
struct attention_state {
    float * q;           // [num_rows][d_k] times scale * log2(e)
    float * q_sealed;    // the same for sealed keys; q where these do not differ
    float * q_codes;     // q_sealed as `code_queries` leaves them, for attend_block; null otherwise
    const float ** mean; // of sealed keys, that was met last
    float * of_mean;     // [num_rows] what it adds to logits
    attention_sums seen; // of all cells but
    attention_sums sealed; // sealed values in their transform; no memory where these do not differ
};
struct attention_state_shape {
    int64_t num_rows, d_k, d_v;
    bool sealed_k, sealed_v; // sealed pages differ in a transform
    bool few = true;         // for attend_block; false: for attend_tiles only
};
// Floats that a row of `code_queries` takes: 4 + 4 bytes a channel, and 64 bytes.
constexpr int64_t coded_query_floats(int64_t d) { return 2 * ((d + 63) & -64) + 16; }
inline attention_state_shape state_shape_of(const attention_args & args) {
    return {args.num_rows, args.k.d, args.v.d, args.sealed_k > 0 && args.rotate_k == 0, args.sealed_v > 0 && args.rotate_v == 0};
}
int64_t attention_state_floats(const attention_state_shape & shape);
attention_state attention_state_at(float * memory, const attention_state_shape & shape);

// Empties the state and scales the queries.
void attention_begin(const attention_args & args, const attention_state & state);

// Adds block `block` to the state, reading the cells where they lie: for few rows.
// Call it block by block, in each for all heads: a token's heads are neighbours in memory, and each call reads ahead its part of the
// next block, `head` of `num_heads` in the order of the calls.
void attend_block(const attention_args & args, const attention_state & state, int64_t block, int64_t head, int64_t num_heads);

// Adds all cells to the state, from cells repacked into scratch once for all rows: for many rows.
struct attention_counts {
    int64_t int8_tiles; // tiles (rows of one tile x one block) computed in INT8
    int64_t f32_tiles;  // in f32
    int64_t unsafe_tiles; // of these for the error bound's sake
};
// p[r][c] = exp(s[c]) / 2^log_sum of the row, which is given here, for the cells of one block, 0 for hidden ones. For up to attention_tile rows
// of a state that attention_begin() made; its sums are not touched.
void attention_probabilities(const attention_args & args, const attention_state & state, int64_t block, float * p);

int64_t attention_scratch_floats(int64_t num_rows, int64_t d_k, int64_t d_v);
attention_counts attend_tiles(const attention_args & args, const attention_state & state, float * scratch);

// Joins num_states states of the same rows, adds the sinks and writes rows [begin, end).
void attention_finish(const attention_args & args, const attention_state * states, int64_t num_states, int64_t begin, int64_t end);

// The largest transform that a head of d elements divides into.
constexpr int64_t rotation_of(int64_t d) { return d & -d; }

// --- what an instruction set brings ---------------------------------------------------------------------------------------------------
// P and scores of a tile: [rows][attention_block]. Rows of Q, o: dense. n: cells of the block, 1 to attention_block.

// What to read ahead while a block is worked on: for each of its cells as many bytes as a row has, `stride` apart.
struct attention_ahead {
    const uint8_t * data;
    int64_t stride;
};

// Kernels on cells of one type, where they lie.
struct attention_cells {
    cell_type type;
    const attention_tiles * tiles;
    // s[r][c] = sum_i q[r][i] K[c][i]. What is beyond n is undefined. A page of a codec is read whole, n is attention_block; its q are
    // rows of `code_queries`, where the instruction set has that.
    void (*scores)(const float * q, int64_t num_rows, int64_t d, const uint8_t * k, int64_t stride, int64_t n, const attention_ahead & next, float * s);
    // o[r][j] = o[r][j] * alpha[r] + sum_c p[r][c] V[c][j]; cells with p = 0 have no effect, whatever they hold.
    void (*values)(const float * p, int64_t num_rows, int64_t d, const uint8_t * v, int64_t stride, int64_t n, const attention_ahead & next,
                   const float * alpha, float * o);
    // Rows as f32: out[c][i], zeros from n to attention_block.
    void (*expand)(const uint8_t * cells, int64_t stride, int64_t n, int64_t d, float * out);
};

// Keys of a block in 8 bits.
struct int8_keys {
    uint8_t * codes;   // [d / 4][attention_block][4], signed or offset by 128 as the instruction set wants it
    float * scales;    // [attention_block]
    float largest_scale, largest_norm; // over the cells, for the error bound
    bool finite;
};
struct int8_values {
    int8_t * codes;    // [attention_block / 4][d][4]
    float * scales;    // [attention_block]
    bool finite;
};
// Queries in 8 bits: num_groups groups of channels, each with its own scale.
struct int8_queries {
    int8_t * codes;    // [num_rows][d]
    float * scales;    // [num_rows][num_groups]
    int32_t * sums;    // [num_rows][num_groups] of codes, times 128
    float * errors;    // [num_rows][2]: the bound of a logit's deviation is errors[0] * |K| + errors[1] * scale of K
    int64_t num_groups;
};
// Head sizes from 192 on have a scale for each 32 channels.
constexpr int64_t int8_query_groups(int64_t d) { return d >= 192 && d % 32 == 0 ? d / 32 : 1; }

// Rows of one tile against one block, in softmax.
struct attention_tile_rows {
    const attention_row * rows;
    int64_t num_rows;     // up to attention_tile
    int64_t first_cell;   // of the block, for the mask
    int64_t num_cells;    // of the block
    float cap;            // softcap * log2(e)
    float *m, *l, *alpha; // of the state, brought up to date; alpha = 2^(m before - m), which the output is to be multiplied with
};

struct attention_tiles {
    isa token;
    // Queries as `scores` of codecs want them, coded_query_floats(d) a row. Null: as they are.
    void (*code_queries)(const float * q, int64_t num_rows, int64_t d, float * codes);
    // s = 2^(logit - m)
    void (*softmax)(float * s, const attention_tile_rows & tile);
    // K^T of a block from its expanded rows: panel[i][c], i in [0, d).
    void (*pack_keys)(const float * rows, int64_t d, float * panel);
    void (*tile_scores)(const float * q, int64_t num_rows, int64_t d, const float * panel, float * s);
    // As `values` of cells, from expanded rows.
    void (*tile_values)(const float * p, int64_t num_rows, int64_t d, const float * panel, const float * alpha, float * o);

    void (*pack_int8_keys)(const float * rows, int64_t d, int64_t n, float * scratch, int8_keys & keys);
    void (*pack_int8_values)(const float * rows, int64_t d, int64_t n, int8_values & values);
    void (*quantize_queries)(const float * q, int64_t num_rows, int64_t d, const int8_queries & out);
    // With one group of channels the scale of Q is left to int8_softmax.
    void (*int8_scores)(const int8_queries & q, int64_t first_row, int64_t num_rows, int64_t d, const int8_keys & keys, float * s);
    // codes[r][c] = 2^(logit - largest of the block) * scale of V, as a share of the largest such product; weight[r]: what a code stands
    // for beside the new m. `unit`: scales of Q that the scores still lack, or null.
    void (*int8_softmax)(float * s, const float * unit, const attention_tile_rows & tile, const int8_values & values, uint8_t * codes, float * weight);
    void (*int8_values)(const uint8_t * codes, const float * weight, int64_t num_rows, int64_t d, const int8_values & values, const float * alpha,
                        float * o);
};

#define ALLOY_KERNEL(cells, isa) extern const attention_cells attention_##cells##_##isa;
#include "kernels/attention/kernels.inc"
#undef ALLOY_KERNEL

// The best kernels for cells of `type` within `allowed`, or null. Kernels found with one `allowed` go together.
const attention_cells * find_attention(cell_type type, isa_set allowed = isa_allowed());

} // namespace alloy
