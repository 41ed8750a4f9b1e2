// The graphs that the host's samplers add (-bs), found among a graph's nodes and run as one call: sampling/list_sampler.h has the algorithm.
#pragma once
#include "host/abi_v3.h"
#include "sampling/list_sampler.h"

#include <cstdint>
#include <string>
#include <vector>

namespace alloy::ops {

// What a chain hands to the host. Null: the graph has none, or nobody reads it.
struct chain_results {
    host::tensor *sampled = nullptr, *probabilities = nullptr, *logits = nullptr, *candidates = nullptr;
};

struct sampling_chain {
    const host::tensor * row = nullptr;     // VIEW of one row of the padded logits
    const host::tensor * pad = nullptr;     // what it views: logits with rows behind them
    std::vector<host::tensor *> nodes;      // that compute, in the order of the graph
    std::vector<sampling::stage> stages;
    // By stage: I32 counts and tokens, F32 biases (null where it has none).
    struct stage_inputs {
        const host::tensor *values = nullptr, *tokens = nullptr, *counts = nullptr;
    };
    std::vector<stage_inputs> inputs;
    sampling::ending end = sampling::ending::list;
    const host::tensor * uniform = nullptr; // of a draw
    chain_results results;

    // Where the row is read: in what was padded, if that is an output of the graph, which nothing is written over; else in the padded rows.
    bool reads_padded() const { return (pad->src[0]->flags & host::flag_output) == 0 || pad->src[0]->view_src != nullptr; }
    const float * logits() const;
    std::string name() const; // for plans
    void run() const;
};

// PAD of rows of F32 behind what is there, which is how the host gives chains their rows.
bool is_padded_rows(const host::tensor * node);

// Whether this CPU has the passes.
bool can_run_chains();

// The chain whose nodes are live[at], live[at + 1] and so on: all its nodes, the longest there is, and none of another chain. Types, shapes and
// parameters only. False: not this pattern.
bool find_sampling_chain(const std::vector<host::tensor *> & live, size_t at, sampling_chain & chain);

} // namespace alloy::ops
