// Operators of the graphs in which the host samples (-bs), and of expert routing and sparse attention: selection from long rows, and the
// small operators between them. A node is its own description; what can be shared is cut into tasks.
#pragma once
#include "host/abi_v3.h"

#include <cstdint>

namespace alloy::ops {

// Does the given task of num_tasks of `node`.
using node_kernel = void (*)(const host::tensor * node, int task, int num_tasks);

struct node_call {
    node_kernel run = nullptr; // null: not ours
    int num_tasks = 1;
};

// Types, shapes, strides, parameters; never data. Results: TOP_K in descending order, equal values by ascending index; ARGSORT stable;
// ARGMAX the first; sums in double precision.
node_call sampling_call_for(const host::tensor * node);

// CUMSUM of one row, SUB of a scalar, STEP, SUM: how many running sums exceed the scalar, which is where the host's draw ends. One walk that
// stops there and writes nothing but the count; `sum` is its node. Null run: not this pattern.
node_call drawn_place_call_for(const host::tensor * cumsum, const host::tensor * sub, const host::tensor * step, const host::tensor * sum);

} // namespace alloy::ops
