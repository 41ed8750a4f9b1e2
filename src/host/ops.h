// Graph operations by name. op_of(tensor) turns the running host's number into ours.
#pragma once
#include "host/abi_v3.h"
#include <cstdint>
#include <string>

namespace alloy::host {

enum class op : uint8_t {
#define ALLOY_OP(name, host_name) name,
#include "host/ops.inc"
#undef ALLOY_OP
    other,
};

// Looks every name of ops.inc up among the host's operations. Returns false and names the missing one when one does not resolve.
bool resolve_ops(std::string & missing);

op op_of(const tensor * t);
int op_number(op which);

// Nodes that only describe data of another tensor.
inline bool is_view_op(op which) {
    return which == op::none || which == op::view || which == op::reshape || which == op::permute || which == op::transpose;
}

// What a node only describes otherwise.
inline const tensor * computed(const tensor * t) {
    while (t != nullptr && is_view_op(op_of(t)) && t->src[0] != nullptr) t = t->src[0];
    return t;
}

} // namespace alloy::host
