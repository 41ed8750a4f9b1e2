#include "kernels/rowwise/rowwise.h"

namespace alloy {

const char * rowwise_op_name(rowwise_op op) {
    switch (op) {
        case rowwise_op::rms_norm: return "rms_norm";
        case rowwise_op::rms_norm_mul: return "rms_norm_mul";
        case rowwise_op::add: return "add";
        case rowwise_op::scale: return "scale";
        case rowwise_op::swiglu: return "swiglu";
        case rowwise_op::geglu: return "geglu";
        case rowwise_op::rope_normal: return "rope_normal";
        case rowwise_op::rope_neox: return "rope_neox";
        case rowwise_op::hadamard: return "hadamard";
        case rowwise_op::count: break;
    }
    return "?";
}

rowwise_kernel find_rowwise(rowwise_op op, isa_set allowed) {
#define ALLOY_KERNEL(listed_op, token) \
    if (op == rowwise_op::listed_op && isa_has(allowed, isa::token)) return rowwise_f32_##listed_op##_##token;
#include "kernels/rowwise/kernels.inc"
#undef ALLOY_KERNEL
    return nullptr;
}

void hadamard_in_place(float * x, int64_t num, int64_t n) {
    static const rowwise_kernel kernel = find_rowwise(rowwise_op::hadamard);
    rowwise_args args{};
    args.a = args.out = x;
    args.stride_a = args.stride_out = n * static_cast<int64_t>(sizeof(float));
    args.num_rows = num;
    args.k = n;
    kernel(args);
}

} // namespace alloy
