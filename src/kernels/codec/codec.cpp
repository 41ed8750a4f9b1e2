#include "kernels/codec/codec.h"

namespace alloy {

codec_kernel find_encode(kv_codec codec, isa_set allowed) {
#define ALLOY_KERNEL(listed_codec, token) \
    if (codec == kv_codec::listed_codec && isa_has(allowed, isa::token)) return encode_##listed_codec##_##token;
#include "kernels/codec/kernels.inc"
#undef ALLOY_KERNEL
    return nullptr;
}

} // namespace alloy
