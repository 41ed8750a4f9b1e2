// sampling_graph_cases: the graphs that the host's samplers build (-bs), computed by the plugin in one step and by the host's CPU backend node
// by node, both beside the same chain in double precision. Where the two draw different tokens, the definition says who is right.
#include "support/scene_cases.h"

#ifndef ALLOY_HOST_HEADERS
int main() { return alloy::test::without_headers(); }
#else
#include "support/list_oracle.h"
#include "support/sampling_graph.h"
#include "support/sampling_oracle.h"

#include <cmath>
#include <cstdio>

namespace alloy::test {
namespace {

// --- the definition: the host's samplers as stages -------------------------------------------------------------------------------------
struct stage_list {
    std::vector<sampling::stage> stages;
    std::vector<float> biases;
    std::vector<int32_t> bias_tokens, tokens, counts;

    stage_list(const std::vector<sampler_part> & parts, int64_t n) {
        using sampling::stage_kind;
        for (const llama_logit_bias & b : some_biases) {
            biases.push_back(b.bias);
            bias_tokens.push_back(b.token);
        }
        tokens = {3, 9, 27, 81, 243, 700};
        for (const int32_t token : tokens) counts.push_back(static_cast<int32_t>(std::count(past_tokens.begin(), past_tokens.end(), token)));
        for (const sampler_part & s : parts) {
            switch (s.what) {
                case part::biases: stages.push_back({.kind = stage_kind::biases, .values = biases, .tokens = bias_tokens}); break;
                case part::penalties: stages.push_back({.kind = stage_kind::penalties, .tokens = tokens, .counts = counts, .repeat_above = 1 / s.a, .repeat_below = s.a, .frequency = s.b, .presence = s.c}); break;
                case part::top_k: stages.push_back({.kind = stage_kind::top_k, .k = static_cast<int64_t>(s.a)}); break;
                case part::top_p: stages.push_back({.kind = stage_kind::top_p, .p = s.a}); break;
                case part::min_p: stages.push_back({.kind = stage_kind::min_p, .p = std::log(s.a)}); break;
                case part::temperature:
                    if (s.a <= 0) stages.push_back({.kind = stage_kind::first});
                    else stages.push_back({.kind = stage_kind::temperature, .factor = 1 / s.a});
                    break;
                case part::dynamic_temperature: {
                    const float least = std::max(0.0f, s.a - s.b);
                    stages.push_back({.kind = stage_kind::dynamic_temperature, .entropy_factor = 1 / std::log(static_cast<float>(sampling::places_after(stages, n))),
                                      .exponent = s.c, .span = s.a + s.b - least, .base = least});
                    break;
                }
                default: break;
            }
        }
    }
    stage_list(const stage_list &) = delete;
};

// --- one graph ----------------------------------------------------------------------------------------------------------------------
struct chain_case {
    const char * name;
    std::vector<sampler_part> parts;
    // Small lists: not one token may differ from the host's graph. Not behind top-k alone: the host's TOP_K swaps the first two, to show that
    // its order is undefined; here the order is that of the host's other samplers.
    bool identical;
};
using enum part;
const std::vector<chain_case> cases = {
    {"default", {{top_k, 40}, {top_p, 0.95f}, {min_p, 0.05f}, {temperature, 0.8f}, {draw}}, true},
    {"all", {{biases}, {penalties, 1.2f, 0.3f, 0.1f}, {top_k, 50}, {top_p, 0.9f}, {min_p, 0.02f}, {dynamic_temperature, 1.0f, 0.5f, 1.3f}, {draw}}, true},
    {"penalties alone", {{penalties, 1.3f, 0, 0}, {draw}}, false},
    {"frequency and presence", {{penalties, 1, 0.5f, 0.2f}, {top_k, 20}, {draw}}, false},
    {"biases, top-p", {{biases}, {top_p, 0.9f}, {temperature, 1.1f}, {draw}}, false},
    {"top-k", {{top_k, 1000}, {draw}}, false},
    {"top-k for a draft", {{top_k, 10}}, true},
    {"top-k, top-p, list", {{top_k, 30}, {top_p, 0.8f}}, true},
    {"top-p", {{top_p, 0.95f}, {temperature, 0.9f}, {draw}}, false},
    {"temperature, then top-p", {{temperature, 0.7f}, {top_p, 0.95f}, {draw}}, false},
    {"temperature, then top-k", {{temperature, 0.7f}, {top_k, 64}, {min_p, 0.1f}, {draw}}, false},
    {"top-p and min-p", {{top_p, 0.99f}, {min_p, 0.01f}, {temperature, 1.2f}, {draw}}, false},
    {"min-p", {{min_p, 0.05f}, {temperature, 1.3f}, {draw}}, false},
    {"dynamic temperature", {{dynamic_temperature, 0.9f, 0.6f, 1}, {draw}}, false},
    {"min-p, dynamic temperature", {{min_p, 0.1f}, {dynamic_temperature, 0.9f, 0.6f, 1}, {draw}}, false},
    {"dist", {{draw}}, false},
    {"dist, tempered", {{temperature, 0.8f}, {draw}}, false},
    {"temperature 0", {{top_k, 40}, {top_p, 0.95f}, {temperature, 0}, {draw}}, true},
    {"temperature 0 alone", {{temperature, 0}, {draw}}, true},
    {"min-p, temperature 0", {{min_p, 0.3f}, {temperature, 0}, {draw}}, true},
    {"greedy", {{greedy}}, true},
    {"biases, greedy", {{biases}, {greedy}}, true},
};

struct tally {
    int64_t draws = 0, differ = 0;
    double ours = 0, stock = 0; // how far outside of its place's share a uniform was, at most
    std::string problem;
    void fail(const std::string & why) {
        if (problem.empty()) problem = why;
    }
};

bool is_near(double a, double b, double relative) { return a == b || std::abs(a - b) <= relative * std::max(1.0, std::abs(b)); }

int32_t place_of_highest(const place_list & list) {
    return static_cast<int32_t>(std::max_element(list.begin(), list.end(), [](const place & a, const place & b) { return a.value < b.value; }) - list.begin());
}

size_t place_of(const place_list & list, int32_t token) {
    for (size_t i = 0; i < list.size(); i++) {
        if (list[i].token == token) return i;
    }
    return list.size();
}

// `plain`: neither equal logits nor NaN, for which the host's sort has no order.
void compare(const chain_case & c, const std::vector<float> & row, const sampling_graph & ours, const sampling_graph & stock, int64_t r, bool plain, tally & t) {
    const sampling_graph::results &mine = ours.of_row(r), &theirs = stock.of_row(r);
    const auto logits = sampling_graph::get<float>(mine.logits), shares = sampling_graph::get<float>(mine.probabilities);
    const auto tokens = sampling_graph::get<int32_t>(mine.candidates);
    const stage_list stages(c.parts, static_cast<int64_t>(row.size()));
    const place_list few = define_list(row, stages.stages, -1e-6), list = define_list(row, stages.stages), many = define_list(row, stages.stages, 1e-6);
    const bool loose = c.parts.size() > 1 && c.parts[c.parts.size() - 2].what == dynamic_temperature;
    if (mine.logits != nullptr && logits.size() != list.size()) return t.fail("the list has another length");
    for (size_t i = 0; i < logits.size(); i++) {
        if (!tokens.empty() && tokens[i] != list[i].token) return t.fail("candidate " + std::to_string(i));
        const bool may_be_masked = many[i].masked || few[i].masked || list[i].masked;
        if (std::isinf(logits[i]) && logits[i] < 0 ? !may_be_masked && !std::isinf(list[i].value) : few[i].masked && many[i].masked) return t.fail("mask of place " + std::to_string(i));
        if (logits[i] > -1e30f && !is_near(static_cast<double>(logits[i]), list[i].value, loose ? 1e-4 : 1e-6)) return t.fail("logit of place " + std::to_string(i));
    }
    if (mine.sampled == nullptr) return;
    const int32_t sampled = sampling_graph::get<int32_t>(mine.sampled)[0], other = sampling_graph::get<int32_t>(theirs.sampled)[0];
    t.draws++;
    t.differ += plain && sampled != other;
    if (plain && c.identical && sampled != other) return t.fail("drew " + std::to_string(sampled) + ", the host's graph " + std::to_string(other));
    if (mine.probabilities == nullptr) {
        if (sampled != place_of_highest(list)) t.fail("not the highest");
        return;
    }
    // The definition has the nucleus that was cut here; a place more or fewer would move every share.
    place_list cut = list;
    for (size_t i = 0; i < cut.size(); i++) cut[i].masked = shares[i] == 0 && logits[i] == -std::numeric_limits<float>::infinity();
    const std::vector<double> exact = shares_of(cut);
    for (size_t i = 0; i < shares.size(); i++) {
        if (std::abs(static_cast<double>(shares[i]) - exact[i]) > (loose ? 1e-3 : 1e-5) * exact[i] + 1e-30) return t.fail("probability of place " + std::to_string(i));
    }
    const double u = static_cast<double>(ours.uniform(r));
    if (ours.uniform(r) != stock.uniform(r)) return t.fail("not the same uniform");
    const size_t at = place_of(list, sampled), at_other = place_of(list, other);
    if (at >= list.size()) return t.fail("drew a token that is not in the list");
    t.ours = std::max(t.ours, distance_to_share(exact, at, u));
    if (plain && at_other < list.size()) t.stock = std::max(t.stock, distance_to_share(exact, at_other, u));
    if (distance_to_share(exact, at, u) > (loose ? 1e-4 : 1e-6)) t.fail("the uniform is not in the share of the token drawn");
}

bool check(const device & d, const chain_case & c, int64_t n, const std::vector<logits> & kinds, int draws) {
    tally t;
    sampling_graph ours(d.backend, d.host_backend, {c.parts, c.parts}, n, 42), stock(d.host_backend, d.host_backend, {c.parts, c.parts}, n, 42);
    const uint64_t steps = d.count_of(counter::kernel_steps), delegated = d.count_of(counter::delegated_nodes);
    int runs = 0;
    for (const logits kind : kinds) {
        for (int i = 0; i < draws; i++, runs++) {
            const std::vector<float> rows[] = {make_logits(kind, n, static_cast<uint64_t>(i)), make_logits(kind, n, static_cast<uint64_t>(i + 100))};
            for (sampling_graph * g : {&ours, &stock}) {
                for (int64_t r = 0; r < 2; r++) g->set_row(r, rows[r]);
                g->set_inputs();
                if (!g->compute()) t.fail("not computed");
            }
            for (int64_t r = 0; r < 2; r++) compare(c, rows[r], ours, stock, r, kind != logits::masked && kind != logits::nans && kind != logits::coarse, t);
        }
    }
    // One step a graph, both rows in it; one more where the padded logits themselves are read.
    const auto used = static_cast<int>(d.count_of(counter::kernel_steps) - steps);
    if (used > 2 * runs || used < runs || d.count_of(counter::delegated_nodes) != delegated) t.fail("took " + std::to_string(used) + " steps for " + std::to_string(runs) + " graphs");
    std::printf("%-28s %7lld tokens: %3d nodes, %lld of %lld differ, uniform beside the share by %.1e, the host's by %.1e%s%s\n", c.name, static_cast<long long>(n), ours.num_nodes(),
                static_cast<long long>(t.differ), static_cast<long long>(t.draws), t.ours, t.stock, t.problem.empty() ? "" : "  FAILED: ", t.problem.c_str());
    return t.problem.empty();
}

// Rows without a finite highest logit: results are defined, indices in range.
bool check_degenerate(const device & d) {
    bool good = true;
    for (const chain_case & c : cases) {
        const int64_t n = 1500;
        sampling_graph ours(d.backend, d.host_backend, {c.parts}, n, 1);
        for (const float x : {-std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
            for (const bool alone : {false, true}) {
                std::vector<float> row(static_cast<size_t>(n), x);
                if (alone) {
                    row = make_logits(logits::peaked, n, 5);
                    row[17] = x;
                }
                ours.set_row(0, row);
                ours.set_inputs();
                bool in_range = ours.compute();
                for (const int32_t token : sampling_graph::get<int32_t>(ours.of_row(0).sampled)) in_range = in_range && token >= 0 && token < n;
                for (const int32_t token : sampling_graph::get<int32_t>(ours.of_row(0).candidates)) in_range = in_range && token >= 0 && token < n;
                if (!in_range) std::printf("%s: %f %s: FAILED\n", c.name, static_cast<double>(x), alone ? "in one place" : "everywhere");
                good = good && in_range;
            }
        }
    }
    return good;
}

bool check_all(const device & d) {
    bool good = true;
    for (const chain_case & c : cases) {
        good = check(d, c, 2000, {logits::peaked, logits::dominant, logits::bulk, logits::flat, logits::masked, logits::nans, logits::coarse, logits::shifted}, 4) && good;
        good = check(d, c, 32000, {logits::peaked, logits::bulk, logits::flat}, 2) && good;
        good = check(d, c, 151936, {logits::peaked, logits::bulk}, 1) && good;
    }
    return check_degenerate(d) && good;
}

} // namespace
} // namespace alloy::test

int main() { return alloy::test::on_device(alloy::test::check_all); }
#endif
