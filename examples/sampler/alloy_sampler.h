// ggml-alloy's sampler as a llama_sampler, for programs that own their loop. One header; needs llama.h and ggml-alloy.h.
//
//     ggml_alloy_chain chain = api->default_chain();
//     chain.top_p = 0.95f;
//     llama_sampler * sampler = alloy_sampler_init(api, chain, /*penalty_last_n*/ 64, /*seed*/ 42);
//     llama_token token = alloy_sampler_sample(sampler, context, -1);   // from the raw logits: no array of candidates is built
//     llama_sampler_accept(sampler, token);
//
// It may also stand at the end of a llama_sampler_chain, behind samplers that need the array (grammar, DRY): then llama_sampler_sample
// does as ever. The same seed gives the tokens of llama.cpp's own chain.
#pragma once
#include <ggml-alloy.h>
#include <llama.h>

#include <cstdint>
#include <deque>
#include <random>
#include <unordered_map>
#include <utility>
#include <vector>

struct alloy_sampler {
    const ggml_alloy_api * api;
    ggml_alloy_chain chain;
    std::vector<ggml_alloy_token_bias> biases; // chain.biases are copied
    size_t penalty_last_n;
    uint32_t seed;
    std::mt19937 engine;
    std::deque<llama_token> last;
    ggml_alloy_sampler * memory;
    std::vector<float> row;

    alloy_sampler(const ggml_alloy_api * a, const ggml_alloy_chain & c, size_t last_n, uint32_t s)
        : api(a), chain(c), biases(c.biases, c.biases + c.num_biases), penalty_last_n(last_n), seed(s), engine(s), memory(a->sampler_new()) {}
    ~alloy_sampler() { api->sampler_free(memory); }
    alloy_sampler(const alloy_sampler &) = delete;
    alloy_sampler & operator=(const alloy_sampler &) = delete;

    // The index into `logits`. `place` finds a token's index, or -1.
    template <class Place> int32_t draw(const float * logits, int64_t n, Place place) {
        std::unordered_map<llama_token, int32_t> count;
        for (const llama_token t : last) count[t]++;
        std::vector<ggml_alloy_token_count> counts;
        for (const auto & [token, number] : count) counts.push_back({place(token), number});
        std::vector<ggml_alloy_token_bias> placed = biases;
        for (ggml_alloy_token_bias & b : placed) b.token = place(b.token);
        ggml_alloy_chain c = chain;
        c.biases = placed.data();
        c.num_biases = placed.size();
        c.counts = counts.data();
        c.num_counts = counts.size();
        std::uniform_real_distribution<double> uniform(0.0, 1.0);
        ggml_alloy_draw result;
        api->sample(memory, logits, n, &c, uniform(engine), &result);
        return result.token;
    }
};

inline alloy_sampler * alloy_sampler_of(const llama_sampler * s) { return static_cast<alloy_sampler *>(s->ctx); }
inline llama_sampler * alloy_sampler_wrap(alloy_sampler * s);

// Null when this CPU has no kernel.
inline llama_sampler * alloy_sampler_init(const ggml_alloy_api * api, const ggml_alloy_chain & chain, size_t penalty_last_n, uint32_t seed) {
    auto * s = new alloy_sampler(api, chain, penalty_last_n, seed);
    if (s->memory != nullptr) return alloy_sampler_wrap(s);
    delete s;
    return nullptr;
}

// From the logits of output `index` as they are; -1 when every one is masked. The caller accepts the token.
inline llama_token alloy_sampler_sample(llama_sampler * s, llama_context * context, int32_t index) {
    const int32_t n = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)));
    return alloy_sampler_of(s)->draw(llama_get_logits_ith(context, index), n, [](llama_token t) { return t; });
}

inline llama_sampler * alloy_sampler_wrap(alloy_sampler * sampler) {
    static llama_sampler_i iface = [] {
        llama_sampler_i i{};
        i.name = [](const llama_sampler *) { return "alloy"; };
        i.accept = [](llama_sampler * s, llama_token token) {
            alloy_sampler & a = *alloy_sampler_of(s);
            a.last.push_back(token);
            if (a.last.size() > a.penalty_last_n) a.last.pop_front();
        };
        i.apply = [](llama_sampler * s, llama_token_data_array * all) {
            alloy_sampler & a = *alloy_sampler_of(s);
            a.row.resize(all->size);
            bool in_place = true;
            for (size_t k = 0; k < all->size; k++) {
                a.row[k] = all->data[k].logit;
                in_place = in_place && all->data[k].id == static_cast<llama_token>(k);
            }
            all->selected = a.draw(a.row.data(), static_cast<int64_t>(all->size), [&](llama_token t) -> int32_t {
                if (in_place) return t;
                for (size_t k = 0; k < all->size; k++) {
                    if (all->data[k].id == t) return static_cast<int32_t>(k);
                }
                return -1;
            });
        };
        i.reset = [](llama_sampler * s) {
            alloy_sampler & a = *alloy_sampler_of(s);
            a.last.clear();
            a.engine.seed(a.seed);
        };
        i.clone = [](const llama_sampler * s) {
            const alloy_sampler & a = *alloy_sampler_of(s);
            ggml_alloy_chain c = a.chain;
            c.biases = a.biases.data();
            auto * copy = new alloy_sampler(a.api, c, a.penalty_last_n, a.seed);
            copy->engine = a.engine;
            copy->last = a.last;
            return alloy_sampler_wrap(copy);
        };
        i.free = [](llama_sampler * s) { delete alloy_sampler_of(s); };
        return i;
    }();
    return llama_sampler_init(&iface, sampler);
}
