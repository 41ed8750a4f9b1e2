#include "kv/policy.h"

#include "base/log.h"
#include "base/options.h"

#include <atomic>
#include <utility>

namespace alloy::kv {
namespace {

constexpr int64_t typical_d = 128; // scales take a little more of smaller heads
constexpr double tolerance = 1.02; // and less of larger ones: a share that is just a split's for heads of 256 stands for that split

} // namespace

namespace {

policy wanted_codecs() {
    const std::string & wanted = text_of(option::kv);
#define ALLOY_KV_PRESET(name, of_keys, of_values, as_measured) \
    if (wanted == #name) return {.lossy = true, .keys = kv_codec::of_keys, .values = kv_codec::of_values, .loss = as_measured};
#include "kv/presets.inc"
#undef ALLOY_KV_PRESET
    const double share = share_of(option::kv);
    if (share == 0) return {};
    // The best uniform split within the share: keys get a bit or two more than values.
    constexpr std::pair<kv_codec, kv_codec> splits[] = {{kv_codec::i8, kv_codec::i8}, {kv_codec::i8, kv_codec::z6}, {kv_codec::z6, kv_codec::z6},
                                                        {kv_codec::z6, kv_codec::n5}, {kv_codec::z6, kv_codec::n4}, {kv_codec::n5, kv_codec::n4},
                                                        {kv_codec::n5, kv_codec::n3}, {kv_codec::n4, kv_codec::n3}};
    policy p{.lossy = true, .keys = kv_codec::n4, .values = kv_codec::n3, .loss = nullptr, .share = share};
    for (const auto & [keys, values] : splits) {
        p.keys = keys;
        p.values = values;
        if (share_of_f16(p, typical_d) <= share * tolerance) break;
    }
    return p;
}

} // namespace

policy wanted_policy() {
    policy p = wanted_codecs();
    p.window = static_cast<int64_t>(number_of(option::kv_window));
    if (const double keep = share_of(option::kv_evict); keep > 0) p.keep = keep;
    return p;
}

void announce(const policy & p) {
    static std::atomic<bool> done{false};
    if ((!p.lossy && p.keep == 1) || done.exchange(true)) return;
    if (!p.lossy) {
        ALLOY_WARN("KV cache: GGML_ALLOY_KV_EVICT does nothing without a compressed cache: set GGML_ALLOY_KV as well (got exact, expected int8, compact, "
                   "tiny or a share)");
        return;
    }
    const char * of_keys = traits_of_codecs[static_cast<int>(p.keys)].name;
    const char * of_values = traits_of_codecs[static_cast<int>(p.values)].name;
    if (p.share > 0) {
        ALLOY_WARN("KV cache: compressed to %.1f %% of f16 where cells are not recent, bits chosen for each head around keys %s, values %s; lossy, not measured "
                   "for this share", 100 * p.share, of_keys, of_values);
    } else {
        ALLOY_WARN("KV cache: %s (keys %s, values %s) saves %.1f %% of f16 where cells are not recent; lossy, measured on SmolLM2-135M / Gemma-3-270M: %s",
                   text_of(option::kv).c_str(), of_keys, of_values, 100 * (1 - share_of_f16(p, typical_d)), p.loss);
    }
    if (p.keep < 1) {
        ALLOY_WARN("KV cache: of these cells each head drops those that are attended least, until %.0f %% are left in all; lossy, "
                   "measured for tiny and 75 %% on SmolLM2-135M / Gemma-3-270M: PPL +0.8 / +0.9 %%; a text that asks for what was dropped finds it missing",
                   100 * p.keep);
    }
}

double share_of_f16(const policy & p, int64_t d) {
    return static_cast<double>(kv_codec_page_bytes(p.keys, d) + kv_codec_page_bytes(p.values, d)) / static_cast<double>(2 * kv_page_cells * d * 2);
}

size_t expected_bytes(const policy & p, int64_t elements, int64_t cells, size_t row_bytes) {
    constexpr int64_t smallest_usual_d = 64;
    const double share = p.share > 0 ? p.share : share_of_f16(p, smallest_usual_d);
    const int64_t rows = p.window + 3 * kv_page_cells; // the sinks' block, one that is filled, and one on its way
    return static_cast<size_t>(share * 2 * static_cast<double>(elements * cells)) + static_cast<size_t>(rows) * row_bytes;
}

} // namespace alloy::kv
