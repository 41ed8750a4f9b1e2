// Operators on independent rows: RMS_NORM, MUL after it, ADD, SCALE, GLU, ROPE. Each turns a graph node into row calls, which the
// rowwise kernels run over any range of rows.
#pragma once
#include "host/abi_v3.h"
#include "kernels/rowwise/rowwise.h"

#include <cstdint>
#include <memory>
#include <optional>

namespace alloy::ops {

// A tensor seen as rows: [ne1 * ne2 * ne3] rows of k floats, row (i1, i2, i3) at data + i1 nb1 + i2 nb2 + i3 nb3. Broadcast dimensions
// have stride 0.
struct row_operand {
    const char * data = nullptr;
    int64_t nb1 = 0, nb2 = 0, nb3 = 0; // bytes
    bool operator==(const row_operand &) const = default;
};

// `t` as rows, from `offset_bytes` on in each. Dimensions of one element get stride 0, so that equal rows compare equal.
row_operand rows_of(const host::tensor * t, size_t offset_bytes = 0);

// One rowwise kernel over all rows of a node.
struct row_call {
    rowwise_op op;
    rowwise_kernel kernel;
    row_operand a, b, out;
    int64_t ne1, ne2, ne3;
    int64_t k;
    int64_t num_rotated;
    float p0, p1;

    int64_t num_rows() const { return ne1 * ne2 * ne3; }
    // Rows [begin, end) in the order i1 fastest.
    void run(int64_t begin, int64_t end) const;
};

// The cos/sin table that ROPE nodes of one graph with equal positions and parameters share.
struct rope_table {
    const host::tensor * positions;    // I32 [num_tokens]
    const host::tensor * freq_factors; // F32 [num_rotated / 2] or null
    int32_t params[16];
    int64_t num_tokens;
    int64_t num_rotated;
    std::unique_ptr<float[]> values;   // [num_tokens][num_rotated]: pairs (cos, sin)

    bool serves(const host::tensor * rope) const;
    // Fills the rows of tokens [begin, end) from the current positions. The angles are computed as the host does.
    void fill(int64_t begin, int64_t end) const;
};
rope_table make_rope_table(const host::tensor * rope);

// What the rows of a node are computed from, row by row.
const host::tensor * row_input(const host::tensor * node);

// The only predicate: whether a kernel of ours computes this node (types, shapes, strides, parameters, CPU). Never looks at data.
bool can_run_rowwise(const host::tensor * node);

// The call for a node that can_run_rowwise(); `table` for ROPE. Addresses must be final.
row_call make_row_call(const host::tensor * node, const rope_table * table);

// RMS_NORM followed by MUL with a weight: one call, or nothing when the pair does not fit the kernel.
std::optional<row_call> make_norm_mul_call(const host::tensor * norm, const host::tensor * mul);

} // namespace alloy::ops
