#include "kv/policy.h"

#include "base/options.h"

#include <utility>

namespace alloy::kv {
namespace {

constexpr int64_t typical_d = 128; // scales take a little more of smaller heads

} // namespace

policy wanted_policy() {
    const std::string & wanted = text_of(option::kv);
#define ALLOY_KV_PRESET(name, keys, values, loss) \
    if (wanted == #name) return {true, static_cast<int64_t>(number_of(option::kv_window)), kv_codec::keys, kv_codec::values, loss, 0};
#include "kv/presets.inc"
#undef ALLOY_KV_PRESET
    const double share = share_of(option::kv);
    if (share == 0) return {};
    // The best uniform split within the share: keys get a bit or two more than values.
    constexpr std::pair<kv_codec, kv_codec> splits[] = {{kv_codec::i8, kv_codec::i8}, {kv_codec::i8, kv_codec::z6}, {kv_codec::z6, kv_codec::z6},
                                                        {kv_codec::z6, kv_codec::n5}, {kv_codec::z6, kv_codec::n4}, {kv_codec::n5, kv_codec::n4},
                                                        {kv_codec::n5, kv_codec::n3}, {kv_codec::n4, kv_codec::n3}};
    policy p{true, static_cast<int64_t>(number_of(option::kv_window)), kv_codec::n4, kv_codec::n3, nullptr, share};
    for (const auto & [keys, values] : splits) {
        p.keys = keys;
        p.values = values;
        if (share_of_f16(p, typical_d) <= share) break;
    }
    return p;
}

double share_of_f16(const policy & p, int64_t d) {
    return static_cast<double>(kv_codec_page_bytes(p.keys, d) + kv_codec_page_bytes(p.values, d)) / static_cast<double>(2 * kv_page_cells * d * 2);
}

} // namespace alloy::kv
