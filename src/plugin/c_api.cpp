#include "plugin/c_api.h"

#include "base/counters.h"
#include "sampling/sampler.h"

#include <algorithm>
#include <new>

namespace alloy::plugin {
namespace {

bool known(size_t index) { return index < static_cast<size_t>(num_counters); }

size_t counter_count() { return num_counters; }
const char * counter_name(size_t index) { return known(index) ? info_of(static_cast<counter>(index)).name : nullptr; }
const char * counter_unit(size_t index) { return known(index) ? info_of(static_cast<counter>(index)).unit : nullptr; }
uint64_t counter_value(size_t index) { return known(index) ? value_of(static_cast<counter>(index)) : 0; }

// --- sampling. Exceptions (memory alone throws) end here.

ggml_alloy_chain default_chain() {
    ggml_alloy_chain c{};
    c.size = sizeof(c);
    c.repeat_penalty = c.top_p = c.temperature = 1;
    return c;
}

ggml_alloy_sampler * sampler_new() {
    if (find_select(select_op::block_max) == nullptr) return nullptr;
    return reinterpret_cast<ggml_alloy_sampler *>(new (std::nothrow) sampling::sampler);
}
void sampler_free(ggml_alloy_sampler * s) { delete reinterpret_cast<sampling::sampler *>(s); }

static_assert(sizeof(ggml_alloy_token_bias) == sizeof(sampling::token_bias) && sizeof(ggml_alloy_token_count) == sizeof(sampling::token_count));

bool is_known(const ggml_alloy_chain * c) {
    return c != nullptr && c->size == sizeof(*c) && (c->biases != nullptr || c->num_biases == 0) && (c->counts != nullptr || c->num_counts == 0);
}
sampling::chain chain_of(const ggml_alloy_chain & c) {
    return {.biases = {reinterpret_cast<const sampling::token_bias *>(c.biases), c.num_biases},
            .counts = {reinterpret_cast<const sampling::token_count *>(c.counts), c.num_counts},
            .repeat_penalty = c.repeat_penalty, .frequency_penalty = c.frequency_penalty, .presence_penalty = c.presence_penalty,
            .top_n_sigma = c.top_n_sigma, .top_k = c.top_k, .top_p = c.top_p, .min_p = c.min_p, .min_keep = c.min_keep, .temperature = c.temperature};
}
int status_of(sampling::status s) {
    switch (s) {
        case sampling::status::ok: return GGML_ALLOY_OK;
        case sampling::status::bad_argument: return GGML_ALLOY_BAD_ARGUMENT;
        case sampling::status::no_token: return GGML_ALLOY_NO_TOKEN;
    }
    return GGML_ALLOY_BAD_ARGUMENT;
}

int sample(ggml_alloy_sampler * s, const float * logits, int64_t num_tokens, const ggml_alloy_chain * c, double uniform, ggml_alloy_draw * draw) {
    if (draw == nullptr) return GGML_ALLOY_BAD_ARGUMENT;
    *draw = {-1, 0};
    if (s == nullptr || !is_known(c)) return GGML_ALLOY_BAD_ARGUMENT;
    try {
        const sampling::draw d = reinterpret_cast<sampling::sampler *>(s)->sample(logits, num_tokens, chain_of(*c), uniform);
        *draw = {d.token, d.probability};
        return status_of(d.result);
    } catch (...) { return GGML_ALLOY_NO_MEMORY; }
}

int64_t candidates(ggml_alloy_sampler * s, const float * logits, int64_t num_tokens, const ggml_alloy_chain * c, int32_t * tokens, float * token_logits, int64_t capacity) {
    if (s == nullptr || !is_known(c) || capacity < 0 || (capacity > 0 && (tokens == nullptr || token_logits == nullptr))) return GGML_ALLOY_BAD_ARGUMENT;
    try {
        std::vector<sampling::survivor> left;
        const int status = status_of(reinterpret_cast<sampling::sampler *>(s)->survivors(logits, num_tokens, chain_of(*c), left));
        if (status != GGML_ALLOY_OK) return status;
        const auto found = static_cast<int64_t>(left.size());
        for (int64_t i = 0; i < std::min(found, capacity); i++) {
            tokens[i] = left[static_cast<size_t>(i)].token;
            token_logits[i] = left[static_cast<size_t>(i)].logit;
        }
        return found;
    } catch (...) { return GGML_ALLOY_NO_MEMORY; }
}

constexpr ggml_alloy_api api = {GGML_ALLOY_API_VERSION, ALLOY_VERSION, counter_count, counter_name, counter_unit, counter_value,
                                default_chain, sampler_new, sampler_free, sample, candidates};

} // namespace

const ggml_alloy_api * ggml_alloy_get_api(uint32_t version) { return version <= GGML_ALLOY_API_VERSION ? &api : nullptr; }

} // namespace alloy::plugin
