#include "kernels/quantize/quantize.h"

namespace alloy {

quantize_kernel find_quantize(act_format format, isa_set allowed) {
#define ALLOY_KERNEL(listed_format, token) \
    if (format == act_format::listed_format && isa_has(allowed, isa::token)) return quantize_##listed_format##_f32_##token;
#include "kernels/quantize/kernels.inc"
#undef ALLOY_KERNEL
    return nullptr;
}

} // namespace alloy
