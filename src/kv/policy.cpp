#include "kv/policy.h"

#include "base/options.h"

namespace alloy::kv {

policy wanted_policy() {
    const std::string & wanted = text_of(option::kv);
#define ALLOY_KV_PRESET(name, keys, values, loss) \
    if (wanted == #name) return {true, static_cast<int64_t>(number_of(option::kv_window)), kv_codec::keys, kv_codec::values, loss};
#include "kv/presets.inc"
#undef ALLOY_KV_PRESET
    return {};
}

double share_of_f16(const policy & p, int64_t d) {
    return static_cast<double>(kv_codec_page_bytes(p.keys, d) + kv_codec_page_bytes(p.values, d)) / static_cast<double>(2 * kv_page_cells * d * 2);
}

} // namespace alloy::kv
