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

} // namespace alloy::ops
