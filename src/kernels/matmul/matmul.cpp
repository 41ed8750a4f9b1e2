#include "kernels/matmul/matmul.h"

namespace alloy {

matmul_kernel find_matmul(weight_type type, isa_set allowed) {
#define ALLOY_KERNEL(weights, token) \
    if (type == weight_type::weights && isa_has(allowed, isa::token)) return matmul_f32_##weights##_##token;
#include "kernels/matmul/kernels.inc"
#undef ALLOY_KERNEL
    return nullptr;
}

} // namespace alloy
