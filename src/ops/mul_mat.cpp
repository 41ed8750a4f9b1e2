#include "ops/mul_mat.h"

#include "host/ops.h"
#include "ops/operands.h"

#include <algorithm>
#include <utility>

namespace alloy::ops {
namespace {

using host::tensor;

// Pieces for each thread: enough to even out what neighbours on the machine take away, and few enough that a piece re-uses the
// activations it has brought into L2.
constexpr int64_t pieces_a_thread = 12;
// Groups of a piece are a multiple of what the widest panel holds.
constexpr int64_t panel_groups = 4;
int64_t whole_panels(int64_t groups) { return (groups + panel_groups - 1) / panel_groups * panel_groups; }

bool has_kernels(const weights::weight & w) {
    const activation acts = format_of(w.packed_as).acts;
    return w.where == weights::layout::packed && find_matmul(w.packed_as) != nullptr &&
           (acts == activation::f32 || find_quantize(acts == activation::q8_32 ? act_format::q8_32 : act_format::q8_256) != nullptr);
}

bool fits(const tensor * node, const weights::weight & w) {
    const tensor *matrix = node->src[0], *columns = node->src[1];
    return has_kernels(w) && matrix->view_src == nullptr && columns != nullptr && has_float_rows(columns) && has_float_rows(node) &&
           columns->ne[0] == matrix->ne[0];
}

void describe_weights(mul_mat_call & call, const weights::weight & w) {
    const tensor & t = w.described;
    call.kernel = find_matmul(w.packed_as);
    call.weights = reinterpret_cast<const uint8_t *>(w.address);
    call.k = t.ne[0];
    call.num_rows = t.ne[1];
    call.num_matrices = t.ne[2];
    call.stride_group = packed_group_bytes(format_of(w.packed_as), call.k);
    call.stride_matrix = call.stride_group * packed_groups(call.num_rows);
}

} // namespace

act_q8_layout layout_of(activation kind) { return kind == activation::q8_32 ? act_q8_32 : act_q8_256; }
int64_t activation_row_size(activation kind, int64_t k) { return kind == activation::f32 ? 0 : act_q8_row_size(layout_of(kind), k); }

bool can_run_mul_mat(const tensor * node, const weights::weight & w) {
    const tensor *matrix = node->src[0], *columns = node->src[1];
    return fits(node, w) && matrix->ne[3] == 1 && columns->ne[2] % matrix->ne[2] == 0 && node->ne[0] == matrix->ne[1] &&
           std::equal(node->ne + 1, node->ne + host::max_dims, columns->ne + 1);
}

bool can_run_mul_mat_id(const tensor * node, const weights::weight & w) {
    const tensor *matrix = node->src[0], *columns = node->src[1], *ids = node->src[2];
    return fits(node, w) && matrix->ne[3] == 1 && ids != nullptr && ids->type == host::type_i32 && ids->nb[0] == sizeof(int32_t) &&
           ids->ne[2] == 1 && ids->ne[3] == 1 && node->ne[0] == matrix->ne[1] && node->ne[1] == ids->ne[0] &&
           node->ne[2] == ids->ne[1] && node->ne[3] == 1 && columns->ne[2] == ids->ne[1] && columns->ne[3] == 1 &&
           (columns->ne[1] == 1 || columns->ne[1] == ids->ne[0]);
}

quantize_call make_quantize_call(const tensor * source, activation kind, uint8_t * out) {
    return {find_quantize(kind == activation::q8_32 ? act_format::q8_32 : act_format::q8_256), source, out,
            activation_row_size(kind, source->ne[0])};
}

void quantize_call::run(int64_t begin, int64_t end) const {
    quantize_args args{};
    args.stride_in = static_cast<int64_t>(source->nb[1]);
    args.stride_out = row_size;
    args.k = source->ne[0];
    for (int64_t row = begin; row < end; row += args.num_rows) {
        const int64_t i1 = row % source->ne[1], i2 = row / source->ne[1] % source->ne[2], i3 = row / (source->ne[1] * source->ne[2]);
        args.num_rows = std::min(source->ne[1] - i1, end - row);
        args.in = reinterpret_cast<const float *>(row_at(source, i1, i2, i3));
        args.out = out + row * row_size;
        kernel(args);
    }
}

// Calls visit(i1, i2, i3) for each column of a product, in the order of mul_mat_call's arrays.
template <class Visit> void for_each_column(const tensor * columns, int64_t num_matrices, Visit visit) {
    const int64_t broadcast = columns->ne[2] / num_matrices; // columns of that many i2 share a matrix
    for (int64_t matrix = 0; matrix < num_matrices; matrix++)
        for (int64_t i3 = 0; i3 < columns->ne[3]; i3++)
            for (int64_t i2 = matrix * broadcast; i2 < (matrix + 1) * broadcast; i2++)
                for (int64_t i1 = 0; i1 < columns->ne[1]; i1++) visit(i1, i2, i3);
}

std::unique_ptr<mul_mat_call> make_mul_mat_call(const tensor * node, const weights::weight & w, const uint8_t * quantized,
                                                const tensor * out) {
    auto call = std::make_unique<mul_mat_call>();
    describe_weights(*call, w);
    const tensor * columns = node->src[1];
    const int64_t row_size = activation_row_size(format_of(w.packed_as).acts, call->k);
    call->columns_a_matrix = columns->ne[1] * columns->ne[2] * columns->ne[3] / call->num_matrices;
    for_each_column(columns, call->num_matrices, [&](int64_t i1, int64_t i2, int64_t i3) {
        const int64_t row = i1 + columns->ne[1] * (i2 + columns->ne[2] * i3);
        call->acts.push_back(quantized ? static_cast<const void *>(quantized + row * row_size) : row_at(columns, i1, i2, i3));
        call->out.push_back(reinterpret_cast<float *>(const_cast<char *>(row_at(out, i1, i2, i3))));
    });
    return call;
}

void add_to(mul_mat_call & call, const tensor * node, const tensor * term) {
    if (term->ne[1] * term->ne[2] * term->ne[3] == 1 && call.num_matrices == 1) {
        call.bias = static_cast<const float *>(term->data);
        return;
    }
    for_each_column(node->src[1], call.num_matrices, [&](int64_t i1, int64_t i2, int64_t i3) {
        call.residual.push_back(reinterpret_cast<const float *>(row_at(term, i1, i2, i3)));
    });
}

void mul_mat_call::run(int num_threads) const {
    const int64_t groups = packed_groups(num_rows);
    const int64_t piece = whole_panels(std::max<int64_t>(1, groups / (num_threads * pieces_a_thread)));
    const int64_t pieces_a_matrix = (groups + piece - 1) / piece;
    matmul_args args{};
    args.stride_group = stride_group;
    args.k = k;
    args.n = columns_a_matrix;
    args.scale = 1;
    for (int64_t p; (p = work.take(pieces_a_matrix * num_matrices, num_threads)) >= 0;) {
        const int64_t matrix = p / pieces_a_matrix, group = p % pieces_a_matrix * piece;
        args.weights = weights + matrix * stride_matrix + group * stride_group;
        args.num_rows = std::min(num_rows - group * packed_rows, piece * packed_rows);
        args.first_row = group * packed_rows;
        args.acts = acts.data() + matrix * columns_a_matrix;
        args.out = out.data() + matrix * columns_a_matrix;
        args.residual = residual.empty() ? nullptr : residual.data() + matrix * columns_a_matrix;
        args.bias = bias;
        kernel(args);
    }
}

std::unique_ptr<mul_mat_id_call> make_mul_mat_id_call(const tensor * node, const weights::weight & w, const uint8_t * quantized) {
    auto call = std::make_unique<mul_mat_id_call>();
    describe_weights(call->product, w);
    call->ids = node->src[2];
    const tensor * columns = node->src[1];
    const int64_t row_size = activation_row_size(format_of(w.packed_as).acts, call->product.k);
    for (int64_t token = 0; token < node->ne[2]; token++)
        for (int64_t slot = 0; slot < node->ne[1]; slot++) {
            const int64_t i1 = columns->ne[1] == 1 ? 0 : slot, row = i1 + columns->ne[1] * token;
            call->product.acts.push_back(quantized ? static_cast<const void *>(quantized + row * row_size) : row_at(columns, i1, token, 0));
            call->product.out.push_back(reinterpret_cast<float *>(const_cast<char *>(row_at(node, slot, token, 0))));
        }
    call->first.resize(static_cast<size_t>(call->product.num_matrices) + 1);
    call->acts.resize(call->product.acts.size());
    call->out.resize(call->product.out.size());
    return call;
}

// A counting sort. The prologue has checked the ids.
void mul_mat_id_call::group() {
    auto expert_of = [&](int64_t token, int64_t slot) { return *reinterpret_cast<const int32_t *>(row_at(ids, token, 0, 0) + slot * 4); };
    std::fill(first.begin(), first.end(), 0);
    for (int64_t token = 0; token < ids->ne[1]; token++)
        for (int64_t slot = 0; slot < ids->ne[0]; slot++) first[static_cast<size_t>(expert_of(token, slot)) + 1]++;
    for (size_t e = 1; e < first.size(); e++) first[e] += first[e - 1];
    size_t column = 0;
    for (int64_t token = 0; token < ids->ne[1]; token++)
        for (int64_t slot = 0; slot < ids->ne[0]; slot++, column++) {
            const auto at = static_cast<size_t>(first[static_cast<size_t>(expert_of(token, slot))]++);
            acts[at] = product.acts[column];
            out[at] = product.out[column];
        }
    std::copy_backward(first.begin(), first.end() - 1, first.end());
    first[0] = 0;
}

void mul_mat_id_call::run(int num_threads) const {
    const int64_t groups = packed_groups(product.num_rows);
    const auto used = static_cast<int64_t>(std::count_if(first.begin() + 1, first.end(), [&, last = 0](int32_t end) mutable {
        return end > std::exchange(last, end);
    }));
    const int64_t wanted = num_threads * pieces_a_thread;
    const int64_t pieces_an_expert = std::clamp<int64_t>(used > 0 ? (wanted + used - 1) / used : 1, 1, groups);
    const int64_t piece = whole_panels((groups + pieces_an_expert - 1) / pieces_an_expert);
    matmul_args args{};
    args.stride_group = product.stride_group;
    args.k = product.k;
    args.scale = 1;
    const int64_t pieces = (groups + piece - 1) / piece;
    for (int64_t p; (p = product.work.take(pieces * product.num_matrices, num_threads)) >= 0;) {
        const int64_t expert = p / pieces, group = p % pieces * piece;
        args.n = first[static_cast<size_t>(expert) + 1] - first[static_cast<size_t>(expert)];
        if (args.n == 0) continue;
        args.weights = product.weights + expert * product.stride_matrix + group * product.stride_group;
        args.num_rows = std::min(product.num_rows - group * packed_rows, piece * packed_rows);
        args.first_row = group * packed_rows;
        args.acts = acts.data() + first[static_cast<size_t>(expert)];
        args.out = out.data() + first[static_cast<size_t>(expert)];
        product.kernel(args);
    }
}

} // namespace alloy::ops
