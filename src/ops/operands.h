// What operators ask of a node's tensors.
#pragma once
#include "host/abi_v3.h"

#include <cstdint>
#include <cstring>

namespace alloy::ops {

inline bool has_float_rows(const host::tensor * t) { return t->type == host::type_f32 && t->nb[0] == sizeof(float); }

inline float float_param(const host::tensor * node, int slot) {
    float value;
    std::memcpy(&value, &node->op_params[slot], sizeof(value));
    return value;
}

inline char * row_at(const host::tensor * t, int64_t i1, int64_t i2, int64_t i3) {
    return static_cast<char *>(t->data) + i1 * static_cast<int64_t>(t->nb[1]) + i2 * static_cast<int64_t>(t->nb[2]) +
           i3 * static_cast<int64_t>(t->nb[3]);
}

} // namespace alloy::ops
