// sampler_cases: the same seed gives the same tokens in the host's own samplers and in ours, over chains, vocabularies and shapes of rows.
// A token more or fewer than one uniform a draw would show in the next row.
#include "support/scene_cases.h"

#ifndef ALLOY_HOST_HEADERS
int main() { return alloy::test::without_headers(); }
#else
#include "../../examples/sampler/alloy_sampler.h"
#include "plugin/c_api.h"
#include "support/list_oracle.h"
#include "support/sampling_oracle.h"
#include "support/stock_sampler.h"

#include <cstdio>
#include <functional>
#include <memory>

namespace alloy::test {
namespace {

using sampling::chain;

struct scene_of_draws {
    const char * name;
    chain c;
    std::vector<logits> kinds;
    double allowed; // share of tokens that may differ: the host adds a vocabulary's probabilities in f32
    bool penalised = false;
};

const std::vector<int32_t> past = {3, 9, 9, 27, 81, 243, 9, 3, 700};
const std::vector<sampling::token_count> counts = {{3, 2}, {9, 3}, {27, 1}, {81, 1}, {243, 1}, {700, 1}};
const std::vector<sampling::token_bias> biases = {{9, 12.0f}, {11, -100.0f}, {500, 15.0f}};

const std::vector<logits> likely = {logits::peaked, logits::dominant}, all = {logits::peaked, logits::dominant, logits::bulk, logits::flat, logits::shifted};
const scene_of_draws scenes[] = {
    {"default", {.top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .min_keep = 0, .temperature = 0.8f}, all, 0},
    {"penalties and biases", {.biases = biases, .counts = counts, .repeat_penalty = 1.2f, .frequency_penalty = 0.3f, .presence_penalty = 0.1f, .top_k = 40, .top_p = 0.95f, .temperature = 1.5f}, all, 0, true},
    {"top-k 1000", {.top_k = 1000, .top_p = 0.95f, .temperature = 1.2f}, all, 0},
    {"top-k alone", {.top_k = 20}, all, 0},
    {"greedy", {.temperature = 0}, all, 0},
    {"min-p", {.min_p = 0.05f, .temperature = 1.3f}, all, 0},
    {"min-p 1", {.min_p = 1}, all, 0},
    {"min-p with min-keep", {.min_p = 0.6f, .min_keep = 30}, all, 0},
    {"top-n-sigma", {.top_n_sigma = 1, .top_k = 40}, all, 0.002},
    {"top-p, peaked", {.top_p = 0.95f, .temperature = 0.9f}, likely, 0.001},
    {"top-p with min-p", {.top_p = 0.9f, .min_p = 0.1f}, likely, 0.001},
    {"dist, peaked", {.temperature = 0.8f}, likely, 0.001},
    {"dist", {}, all, 0.01},
    {"top-p, thousands", {.top_p = 0.95f, .temperature = 1.1f}, {logits::bulk}, 0.3}, // measured: the host's own error
};

// How far a uniform is from the share of the token that was drawn with it, by sums in double precision: of the filters that no list bounds.
struct exact_draw {
    place_list list;
    std::vector<double> shares;
    exact_draw(const chain & c, const std::vector<float> & row) {
        std::vector<sampling::stage> stages;
        if (c.top_p < 1) stages.push_back({.kind = sampling::stage_kind::top_p, .p = c.top_p});
        stages.push_back({.kind = sampling::stage_kind::temperature, .factor = 1 / c.temperature});
        list = define_list(row, stages);
        shares = shares_of(list);
    }
    double distance(int32_t token, double uniform) const {
        const auto at = std::find_if(list.begin(), list.end(), [&](const place & p) { return p.token == token; }) - list.begin();
        return distance_to_share(shares, static_cast<size_t>(at), uniform);
    }
};

// Where the host adds thousands of probabilities in f32, tokens may differ: then ours is the one whose share the uniform lies in.
bool check_long_sums() {
    double ours_off = 0, stock_off = 0;
    int total = 0, different = 0, stock_wrong = 0;
    for (const chain & c : {chain{.top_p = 0.95f, .temperature = 1.1f}, chain{}, chain{.temperature = 0.8f}}) {
        for (const int64_t num_tokens : {2000, 32000, 128256}) {
            stock_sampler stock(c, 42, static_cast<int32_t>(num_tokens));
            seeded_sampler ours(c, 42);
            std::mt19937 engine(42);
            std::uniform_real_distribution<double> uniforms(0.0f, 1.0f);
            for (int i = 0; i < 40; i++) {
                static std::vector<float> row;
                static std::unique_ptr<exact_draw> exact;
                if (i % 10 == 0) {
                    row = make_logits(i < 20 ? logits::bulk : logits::flat, num_tokens, static_cast<uint64_t>(i));
                    exact = std::make_unique<exact_draw>(c, row);
                }
                const double u = uniforms(engine);
                const int32_t mine = ours.draw(row), theirs = stock.draw(row);
                const double off = exact->distance(mine, u), host_off = exact->distance(theirs, u);
                ours_off = std::max(ours_off, off);
                stock_off = std::max(stock_off, host_off);
                total++;
                different += mine != theirs;
                stock_wrong += mine != theirs && host_off > off;
            }
        }
    }
    const bool good = ours_off < 1e-6 && stock_wrong == different;
    std::printf("long sums: %d of %d differ, in %d of these the uniform is nearer to our token's share; ours off by %.1e at most, the host's by %.1e%s\n", different, total, stock_wrong,
                ours_off, stock_off, good ? "" : "  FAILED");
    return good;
}

bool check(const scene_of_draws & s, int64_t num_tokens, int num_draws) {
    int total = 0, different = 0;
    for (const logits kind : s.kinds) {
        stock_sampler stock(s.c, 42, static_cast<int32_t>(num_tokens), s.penalised ? past : std::vector<int32_t>{});
        seeded_sampler ours(s.c, 42);
        for (int i = 0; i < num_draws; i++) {
            const std::vector<float> row = make_logits(kind, num_tokens, static_cast<uint64_t>(i / 4)); // four draws from each
            different += stock.draw(row) != ours.draw(row);
            total++;
        }
    }
    const bool good = different <= s.allowed * total;
    std::printf("%-22s %7lld tokens: %d of %d differ%s\n", s.name, static_cast<long long>(num_tokens), different, total, good ? "" : "  FAILED");
    return good;
}

// The wrapper of examples/, in a chain of the host behind a sampler that shuffles the array, and cloned in the middle.
bool check_wrapper() {
    const ggml_alloy_api * api = plugin::ggml_alloy_get_api(GGML_ALLOY_API_VERSION);
    ggml_alloy_chain c = api->default_chain();
    c.repeat_penalty = 1.3f;
    c.presence_penalty = 0.2f;
    c.top_p = 0.9f;
    c.min_p = 0.02f;
    c.temperature = 0.9f;
    llama_sampler * wrapped = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(wrapped, llama_sampler_init_top_k(100));
    llama_sampler_chain_add(wrapped, alloy_sampler_init(api, c, 8, 5));
    llama_sampler * stock = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(stock, llama_sampler_init_top_k(100));
    llama_sampler_chain_add(stock, llama_sampler_init_penalties(3000, 8, c.repeat_penalty, 0, c.presence_penalty));
    llama_sampler_chain_add(stock, llama_sampler_init_top_p(c.top_p, 0));
    llama_sampler_chain_add(stock, llama_sampler_init_min_p(c.min_p, 0));
    llama_sampler_chain_add(stock, llama_sampler_init_temp(c.temperature));
    llama_sampler_chain_add(stock, llama_sampler_init_dist(5));
    int different = 0;
    const auto draw = [&](llama_sampler * s, const std::vector<float> & row) {
        std::vector<llama_token_data> data;
        for (size_t i = 0; i < row.size(); i++) data.push_back({static_cast<llama_token>(i), row[i], 0});
        llama_token_data_array all = {data.data(), data.size(), -1, false};
        llama_sampler_apply(s, &all);
        const llama_token token = all.data[all.selected].id;
        llama_sampler_accept(s, token);
        return token;
    };
    const std::vector<float> row = make_logits(logits::peaked, 3000, 3); // the same each time, so that penalties have work
    for (int i = 0; i < 200; i++) {
        different += draw(stock, row) != draw(wrapped, row);
        if (i != 100) continue;
        llama_sampler * copy = llama_sampler_clone(wrapped);
        llama_sampler_free(wrapped);
        wrapped = copy;
    }
    llama_sampler_free(stock);
    llama_sampler_free(wrapped);
    std::printf("wrapper: %d of 200 differ%s\n", different, different == 0 ? "" : "  FAILED");
    return different == 0;
}

} // namespace
} // namespace alloy::test

int main() {
    using namespace alloy::test;
    bool good = true;
    for (const scene_of_draws & s : scenes) {
        good = check(s, 2000, 100) && good;
        good = check(s, 32000, 40) && good;
        good = check(s, 128256, 8) && good;
    }
    good = check_long_sums() && good;
    good = check_wrapper() && good;
    return good ? 0 : 1;
}
#endif
