#include "ops/row_op.h"

#include "host/ops.h"
#include "ops/operands.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace alloy::ops {
namespace {

using host::op;
using host::tensor;

bool same_shape(const tensor * a, const tensor * b) { return std::equal(std::begin(a->ne), std::end(a->ne), b->ne); }

bool is_empty(const tensor * t) { return std::any_of(std::begin(t->ne), std::end(t->ne), [](int64_t n) { return n <= 0; }); }

// `t` as one operand of a node with the shape of `node`: same row length, other dimensions equal or 1.
bool broadcasts_to(const tensor * t, const tensor * node) {
    if (t->ne[0] != node->ne[0]) return false;
    for (int i = 1; i < host::max_dims; i++) {
        if (t->ne[i] != node->ne[i] && t->ne[i] != 1) return false;
    }
    return true;
}

std::optional<rowwise_op> glu_kernel(const tensor * node) {
    switch (node->op_params[0]) {
        case host::glu_swiglu: return rowwise_op::swiglu;
        case host::glu_geglu: return rowwise_op::geglu;
        default: return std::nullopt;
    }
}

// A product that the host marks as a Hadamard transform: it rotates what goes into quantised caches.
bool is_hadamard(const tensor * node) {
    const int64_t k = node->ne[0];
    return node->op_params[1] == host::hint_src0_is_hadamard && k >= 16 && (k & (k - 1)) == 0;
}

std::optional<rowwise_op> kernel_of(const tensor * node) {
    switch (host::op_of(node)) {
        case op::mul_mat: return is_hadamard(node) ? std::optional(rowwise_op::hadamard) : std::nullopt;
        case op::rms_norm: return rowwise_op::rms_norm;
        case op::add: return rowwise_op::add;
        case op::scale: return rowwise_op::scale;
        case op::glu: return glu_kernel(node);
        case op::rope:
            if (node->op_params[2] == host::rope_normal) return rowwise_op::rope_normal;
            if (node->op_params[2] == host::rope_neox) return rowwise_op::rope_neox;
            return std::nullopt;
        default: return std::nullopt;
    }
}

bool can_run_rope(const tensor * node) {
    const tensor *a = node->src[0], *positions = node->src[1], *factors = node->src[2];
    const int num_rotated = node->op_params[1], first_rotated = node->op_params[15];
    return same_shape(a, node) && positions != nullptr && positions->type == host::type_i32 && positions->nb[0] == sizeof(int32_t) &&
           positions->ne[0] >= node->ne[2] && num_rotated > 0 && num_rotated % 2 == 0 && num_rotated <= node->ne[0] &&
           first_rotated == 0 &&
           (factors == nullptr || (has_float_rows(factors) && factors->ne[0] >= num_rotated / 2));
}

bool can_run_glu(const tensor * node) {
    const tensor *gate = node->src[0], *up = node->src[1];
    if (up != nullptr) return has_float_rows(up) && same_shape(gate, node) && same_shape(up, node);
    return gate->ne[0] == 2 * node->ne[0] && gate->ne[1] == node->ne[1] && gate->ne[2] == node->ne[2] && gate->ne[3] == node->ne[3];
}

row_call blank_call(rowwise_op which, const tensor * node) {
    row_call call{};
    call.op = which;
    call.kernel = find_rowwise(which);
    call.out = rows_of(node);
    call.ne1 = node->ne[1];
    call.ne2 = node->ne[2];
    call.ne3 = node->ne[3];
    call.k = node->ne[0];
    return call;
}

// The host flattens [k, heads, tokens] to [k, heads * tokens] for the transform. The call has the rows as they were before, so that it
// can join the chain that made them.
void take_shape_of_source(row_call & call, const tensor * node, const tensor * a) {
    const tensor * whole = a->view_src;
    if (whole == nullptr || whole->data != a->data || whole->ne[0] != a->ne[0] || !is_dense(whole) || !is_dense(a) || !is_dense(node)) return;
    if (whole->ne[1] * whole->ne[2] * whole->ne[3] != a->ne[1] * a->ne[2] * a->ne[3]) return;
    tensor shaped = *whole;
    call.a = rows_of(&shaped);
    shaped.data = node->data;
    call.out = rows_of(&shaped);
    call.ne1 = whole->ne[1];
    call.ne2 = whole->ne[2];
    call.ne3 = whole->ne[3];
}

} // namespace

const tensor * row_input(const tensor * node) { return host::op_of(node) == op::mul_mat ? node->src[1] : node->src[0]; }

row_operand rows_of(const tensor * t, size_t offset_bytes) {
    auto stride = [&](int i) { return t->ne[i] == 1 ? int64_t{0} : static_cast<int64_t>(t->nb[i]); };
    return {static_cast<const char *>(t->data) + offset_bytes, stride(1), stride(2), stride(3)};
}

bool can_run_rowwise(const tensor * node) {
    const std::optional<rowwise_op> which = kernel_of(node);
    const tensor * a = row_input(node);
    if (!which || a == nullptr || is_empty(node) || is_empty(a) || !has_float_rows(node) || !has_float_rows(a) || find_rowwise(*which) == nullptr) {
        return false;
    }
    switch (host::op_of(node)) {
        case op::add: return node->src[1] != nullptr && has_float_rows(node->src[1]) && same_shape(a, node) && broadcasts_to(node->src[1], node);
        case op::glu: return can_run_glu(node);
        case op::rope: return can_run_rope(node);
        default: return same_shape(a, node);
    }
}

row_call make_row_call(const tensor * node, const rope_table * table) {
    row_call call = blank_call(*kernel_of(node), node);
    call.a = rows_of(row_input(node));
    switch (host::op_of(node)) {
        case op::mul_mat: take_shape_of_source(call, node, row_input(node)); break;
        case op::rms_norm: call.p0 = float_param(node, 0); break;
        case op::add: call.b = rows_of(node->src[1]); break;
        case op::scale:
            call.p0 = float_param(node, 0);
            call.p1 = float_param(node, 1);
            break;
        case op::glu:
            if (node->src[1] != nullptr) {
                call.b = rows_of(node->src[1]);
            } else { // gate and up side by side in one row; `swapped` says that up comes first
                const size_t half = static_cast<size_t>(call.k) * sizeof(float);
                const bool swapped = node->op_params[1] != 0;
                call.a = rows_of(node->src[0], swapped ? half : 0);
                call.b = rows_of(node->src[0], swapped ? 0 : half);
            }
            break;
        case op::rope:
            call.num_rotated = table->num_rotated;
            call.b = {reinterpret_cast<const char *>(table->values.get()), 0,
                      table->num_rotated * static_cast<int64_t>(sizeof(float)), 0};
            break;
        default: break;
    }
    return call;
}

std::optional<row_call> make_norm_mul_call(const tensor * norm, const tensor * mul) {
    if (host::op_of(norm) != op::rms_norm || host::op_of(mul) != op::mul || !can_run_rowwise(norm)) return std::nullopt;
    const tensor * weight = mul->src[0] == norm ? mul->src[1] : mul->src[0];
    if ((mul->src[0] != norm && mul->src[1] != norm) || weight == nullptr || weight == norm || !has_float_rows(weight) || !has_float_rows(mul) ||
        !same_shape(mul, norm) || !broadcasts_to(weight, mul) || find_rowwise(rowwise_op::rms_norm_mul) == nullptr) {
        return std::nullopt;
    }
    row_call call = blank_call(rowwise_op::rms_norm_mul, mul);
    call.a = rows_of(norm->src[0]);
    call.b = rows_of(weight);
    call.p0 = float_param(norm, 0);
    return call;
}

void row_call::run(int64_t begin, int64_t end) const {
    rowwise_args args{};
    args.stride_a = a.nb1;
    args.stride_b = b.nb1;
    args.stride_out = out.nb1;
    args.k = k;
    args.num_rotated = num_rotated;
    args.p0 = p0;
    args.p1 = p1;
    for (int64_t row = begin; row < end;) {
        const int64_t i1 = row % ne1, i2 = row / ne1 % ne2, i3 = row / (ne1 * ne2);
        auto at = [&](const row_operand & o) { return o.data + i1 * o.nb1 + i2 * o.nb2 + i3 * o.nb3; };
        args.num_rows = std::min(ne1 - i1, end - row);
        args.a = reinterpret_cast<const float *>(at(a));
        args.b = b.data ? reinterpret_cast<const float *>(at(b)) : nullptr;
        args.out = reinterpret_cast<float *>(const_cast<char *>(at(out)));
        kernel(args);
        row += args.num_rows;
    }
}

rope_table make_rope_table(const tensor * rope) {
    rope_table table{};
    table.positions = rope->src[1];
    table.freq_factors = rope->src[2];
    std::copy(std::begin(rope->op_params), std::end(rope->op_params), table.params);
    table.num_tokens = rope->ne[2];
    table.num_rotated = rope->op_params[1];
    table.values = std::make_unique<float[]>(static_cast<size_t>(table.num_tokens * table.num_rotated));
    return table;
}

bool rope_table::serves(const tensor * rope) const {
    // Slot 2, the pairing, does not change the angles.
    auto same_params = [&](int first, int last) { return std::equal(params + first, params + last, rope->op_params + first); };
    return positions->data == rope->src[1]->data && num_tokens == rope->ne[2] && same_params(1, 2) && same_params(4, 11) &&
           (freq_factors ? freq_factors->data : nullptr) == (rope->src[2] ? rope->src[2]->data : nullptr);
}

// YaRN (arXiv 2309.00071), with the rounding of the host: angles by repeated multiplication in f32.
void rope_table::fill(int64_t begin, int64_t end) const {
    auto param = [&](int slot) {
        float value;
        std::memcpy(&value, &params[slot], sizeof(value));
        return value;
    };
    const float n = static_cast<float>(num_rotated), original_context = static_cast<float>(params[4]);
    const float base = param(5), freq_scale = param(6), ext_factor = param(7), attn_factor = param(8);
    const float step = std::pow(base, -2.0f / n);
    auto correction_dim = [&](float rotations) {
        return n * std::log(original_context / (rotations * 2.0f * static_cast<float>(M_PI))) / (2.0f * std::log(base));
    };
    const float low = std::max(0.0f, std::floor(correction_dim(param(9))));
    const float high = std::min(n - 1.0f, std::ceil(correction_dim(param(10))));
    const float magnitude = ext_factor != 0.0f ? attn_factor * (1.0f + 0.1f * std::log(1.0f / freq_scale)) : attn_factor;

    const auto * factors = freq_factors ? static_cast<const float *>(freq_factors->data) : nullptr;
    for (int64_t token = begin; token < end; token++) {
        float * row = values.get() + token * num_rotated;
        float angle = static_cast<float>(static_cast<const int32_t *>(positions->data)[token]);
        for (int64_t j = 0; j < num_rotated / 2; j++) {
            const float extrapolated = factors ? angle / factors[j] : angle;
            float theta = freq_scale * extrapolated;
            if (ext_factor != 0.0f) {
                const float ramp = 1.0f - std::min(1.0f, std::max(0.0f, (static_cast<float>(j) - low) / std::max(0.001f, high - low)));
                const float mix = ramp * ext_factor;
                theta = theta * (1.0f - mix) + extrapolated * mix;
            }
            row[2 * j] = std::cos(theta) * magnitude;
            row[2 * j + 1] = std::sin(theta) * magnitude;
            angle *= step;
        }
    }
}

} // namespace alloy::ops
