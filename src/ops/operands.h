// What operators ask of a node's tensors.
#pragma once
#include "host/abi_v3.h"

#include <cstdint>
#include <cstring>

namespace alloy::ops {

inline bool has_float_rows(const host::tensor * t) { return t->type == host::type_f32 && t->nb[0] == sizeof(float); }

inline int64_t num_elements(const host::tensor * t) { return t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]; }

// Numbers of 4 bytes, one after the other.
inline bool is_dense(const host::tensor * t) {
    size_t expected = 4;
    for (int i = 0; i < host::max_dims; i++) {
        if (t->ne[i] != 1 && t->nb[i] != expected) return false;
        expected *= static_cast<size_t>(t->ne[i]);
    }
    return true;
}

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
