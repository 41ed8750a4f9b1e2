// MUL_MAT and MUL_MAT_ID on packed weights: activations are quantised once into memory of the plan, then every thread takes pieces of
// rows until none is left. No barrier inside a product; the one between the two parts is the planner's.
#pragma once
#include "formats/act_q8.h"
#include "host/abi_v3.h"
#include "kernels/matmul/matmul.h"
#include "kernels/quantize/quantize.h"
#include "ops/work_counter.h"
#include "weights/weights.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace alloy::ops {

// f32 rows of a tensor -> activation rows at `out`, in the order i1 fastest.
struct quantize_call {
    quantize_kernel kernel;
    const host::tensor * source;
    uint8_t * out;
    int64_t row_size;

    int64_t num_rows() const { return source->ne[1] * source->ne[2] * source->ne[3]; }
    void run(int64_t begin, int64_t end) const;
};

// One product, all columns of it.
struct mul_mat_call {
    matmul_kernel kernel;
    const uint8_t * weights;
    int64_t stride_group, stride_matrix; // bytes
    int64_t num_rows, k;
    int64_t num_matrices;
    int64_t columns_a_matrix;
    std::vector<const void *> acts;      // [num_matrices][columns_a_matrix]
    std::vector<float *> out;            // likewise
    std::vector<const float *> residual; // likewise, or empty
    const float * bias = nullptr;        // [num_rows]
    mutable work_counter work;

    // The share of one of num_threads threads; all must call it.
    void run(int num_threads) const;
};

// One product by expert: column (slot, token) is multiplied with matrix ids[token][slot].
struct mul_mat_id_call {
    mul_mat_call product; // acts, out: [tokens][slots]; num_matrices experts
    const host::tensor * ids; // I32 [slots, tokens]
    // Columns sorted by expert, made anew in each run by group().
    std::vector<int32_t> first; // [num_matrices + 1]
    std::vector<const void *> acts;
    std::vector<float *> out;

    void group();
    void run(int num_threads) const;
};

// The only predicate: whether a kernel of ours computes this node from the packed weight `w`. Never looks at data.
bool can_run_mul_mat(const host::tensor * node, const weights::weight & w);
bool can_run_mul_mat_id(const host::tensor * node, const weights::weight & w);

// What the activations of a weight type are quantised with; f32 rows are read as they are.
act_q8_layout layout_of(activation kind);
int64_t activation_row_size(activation kind, int64_t k); // bytes; 0 for f32

quantize_call make_quantize_call(const host::tensor * source, activation kind, uint8_t * out);

// `quantized`: activation rows of src[1], or null for f32. `out`: where the product goes, the node itself or the sum after it.
std::unique_ptr<mul_mat_call> make_mul_mat_call(const host::tensor * node, const weights::weight & w, const uint8_t * quantized,
                                                const host::tensor * out);
// Lets the call add `term` to the product: one row for all columns, or a tensor of the product's shape.
void add_to(mul_mat_call & call, const host::tensor * node, const host::tensor * term);
std::unique_ptr<mul_mat_id_call> make_mul_mat_id_call(const host::tensor * node, const weights::weight & w, const uint8_t * quantized);

} // namespace alloy::ops
