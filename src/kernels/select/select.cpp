#include "kernels/select/select.h"

namespace alloy {

select_kernel find_select(select_op op, isa_set allowed) {
#define ALLOY_KERNEL(listed_op, token) \
    if (op == select_op::listed_op && isa_has(allowed, isa::token)) return select_f32_##listed_op##_##token;
#include "kernels/select/kernels.inc"
#undef ALLOY_KERNEL
    return nullptr;
}

} // namespace alloy
