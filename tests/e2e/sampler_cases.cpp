// sampler_cases: the same seed gives the same tokens in the host's own samplers and in ours, over chains, vocabularies and shapes of rows.
// A token more or fewer than one uniform a draw would show in the next row.
#include "support/scene_cases.h"

#ifndef ALLOY_HOST_HEADERS
int main() { return alloy::test::without_headers(); }
#else
#include "support/sampling_oracle.h"
#include "support/stock_sampler.h"

#include <cstdio>
#include <functional>

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
    return good ? 0 : 1;
}
#endif
