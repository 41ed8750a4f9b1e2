// FLASH_ATTN_EXT on cells of any listed type. Few rows of queries (decoding) share the cells among the threads and join what each has
// seen; many rows (prompts) share the rows. Work is handed out piece by piece; no barrier inside a part.
#pragma once
#include "host/abi_v3.h"
#include "kernels/attention/attention.h"
#include "kv/kv.h"
#include "ops/work_counter.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace alloy::ops {

// What the rows of one mask show of each block of cells, for all attention nodes of a graph that use it.
struct mask_map {
    const host::tensor * mask; // F16 [cells, tokens, heads or 1, streams or 1], or null: one row, all cells visible
    int64_t num_cells, num_blocks, num_rows;
    std::unique_ptr<uint8_t[]> sight; // [num_rows][num_blocks] of attention_sight bits

    bool serves(const host::tensor * node) const;
    void fill(int64_t begin, int64_t end) const; // rows, from the current mask
    const uint8_t * row(int64_t token, int64_t head, int64_t stream) const;
};
mask_map make_mask_map(const host::tensor * node);

// How prompts are computed: GGML_ALLOY_ATTENTION.
enum class attention_precision : uint8_t {
    automatic, // INT8 mode where keys and values are declared quantised
    exact,
    int8,      // INT8 mode for all
};

// Memory that attention steps work in, which run one after another. Threads beyond max_threads leave the work to the others.
struct attention_memory {
    float * data = nullptr;
    int64_t floats = 0;
    int max_threads = 0;
};

// Sizes of a node that can_run_attention().
struct attention_shape {
    int64_t d_k, d_v;
    int64_t tokens;           // of a stream
    int64_t heads, kv_heads;  // of queries; of keys and values
    int64_t group;            // query heads that share a KV head
    int64_t streams, states;  // states: KV heads of all streams
    attention_shape() = default;
    explicit attention_shape(const host::tensor * node);
};

struct attention_call {
    const host::tensor * node;
    const host::tensor * out; // in the shape of the node: where its rows go
    const mask_map * map;
    const attention_tiles * tiles;
    attention_shape shape;
    kv::kv_view keys, values;
    float scale, softcap, max_bias;
    bool few; // attend in pieces of the cells, each with states of its own, then join these: who took a piece has no effect on results
    bool int8;
    int64_t rotate_q, rotate_k, rotate_v, rotate_out, sealed_k, sealed_v; // as in attention_args
    attention_memory memory;
    kv::attention_sample * sample = nullptr;  // to be filled where it is wanted
    mutable work_counter work;

    // The share of thread `thread`; all threads must call it.
    void run(int thread, int num_threads) const;
    // few: joins the states of that run and writes the output.
    void join(int thread, int num_threads) const;
};

// The only predicate: whether kernels of ours compute this node. Never looks at data.
bool can_run_attention(const host::tensor * node);

int64_t attention_memory_floats(const host::tensor * node, int max_threads); // for a node that can_run_attention()

// `out`: in the shape of the node, where its rows go, Hadamard transformed in groups of rotate_out (0: as they are). `keys`, `values`: the
// cells behind src[1] and src[2].
std::unique_ptr<attention_call> make_attention_call(const host::tensor * node, const host::tensor * out, const mask_map * map, kv::kv_view keys,
                                                    kv::kv_view values, attention_precision precision, int64_t rotate_out,
                                                    const attention_memory & memory);

// Whether each row of queries stands just where the row of the output that is made from it goes.
bool queries_lie_as_output(const host::tensor * node, const host::tensor * out);

} // namespace alloy::ops
