// The host's own chain of samplers on a row of logits, as a program that calls llama_sampler_sample has it: the array of all candidates is
// filled, then the chain runs. For tests and benchmarks that link libllama.
#pragma once
#include "sampling/sampler.h"

#include <llama.h>

#include <random>
#include <vector>

namespace alloy::test {

class stock_sampler {
  public:
    // `past` are tokens that the penalties count.
    stock_sampler(const sampling::chain & c, uint32_t seed, int32_t num_tokens, const std::vector<int32_t> & past = {}) {
        chain_ = llama_sampler_chain_init(llama_sampler_chain_default_params());
        std::vector<llama_logit_bias> biases;
        for (const auto & b : c.biases) biases.push_back({b.token, b.bias});
        if (!biases.empty()) add(llama_sampler_init_logit_bias(num_tokens, static_cast<int32_t>(biases.size()), biases.data()));
        if (!past.empty()) add(llama_sampler_init_penalties(num_tokens, static_cast<int32_t>(past.size()), c.repeat_penalty, c.frequency_penalty, c.presence_penalty));
        if (c.top_n_sigma > 0) add(llama_sampler_init_top_n_sigma(c.top_n_sigma));
        const auto min_keep = static_cast<size_t>(c.min_keep);
        if (c.top_k > 0) add(llama_sampler_init_top_k(static_cast<int32_t>(c.top_k)));
        if (c.top_p < 1) add(llama_sampler_init_top_p(c.top_p, min_keep));
        if (c.min_p > 0) add(llama_sampler_init_min_p(c.min_p, min_keep));
        add(llama_sampler_init_temp(c.temperature));
        add(llama_sampler_init_dist(seed));
        for (const int32_t token : past) llama_sampler_accept(chain_, token);
    }
    ~stock_sampler() { llama_sampler_free(chain_); }
    stock_sampler(const stock_sampler &) = delete;
    stock_sampler & operator=(const stock_sampler &) = delete;

    int32_t draw(const std::vector<float> & logits) {
        candidates_.resize(logits.size());
        for (size_t i = 0; i < logits.size(); i++) candidates_[i] = {static_cast<llama_token>(i), logits[i], 0};
        llama_token_data_array all = {candidates_.data(), candidates_.size(), -1, false};
        llama_sampler_apply(chain_, &all);
        return all.data[all.selected].id;
    }

  private:
    void add(llama_sampler * s) { llama_sampler_chain_add(chain_, s); }
    llama_sampler * chain_;
    std::vector<llama_token_data> candidates_;
};

// Ours with the host's stream of uniforms.
class seeded_sampler {
  public:
    seeded_sampler(const sampling::chain & c, uint32_t seed) : chain_(c), engine_(seed) {}
    int32_t draw(const std::vector<float> & logits) {
        std::uniform_real_distribution<double> uniform(0.0f, 1.0f);
        return sampler_.sample(logits.data(), static_cast<int64_t>(logits.size()), chain_, uniform(engine_)).token;
    }

  private:
    sampling::chain chain_;
    sampling::sampler sampler_;
    std::mt19937 engine_;
};

} // namespace alloy::test
