// Chains over lists of candidates, as the host's graphs describe them, beside their definition in double precision.
#include "sampling/list_sampler.h"
#include "support/list_oracle.h"
#include "support/sampling_oracle.h"

#include <gtest/gtest.h>

#include <cmath>

namespace alloy {
namespace {

using namespace sampling;
using test::list_defect;
using test::logits;
using test::place_list;

constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

const std::vector<float> bias_values = {2, -100, 9, -50};
const std::vector<int32_t> bias_tokens = {9, 11, 50, 11}, past = {3, 9, 27, 40, 41, 1}, counts = {2, 3, 1, 1, 0, 0};
const stage biases = {.kind = stage_kind::biases, .values = bias_values, .tokens = bias_tokens};
const stage penalties = {.kind = stage_kind::penalties, .tokens = past, .counts = counts, .repeat_above = 1 / 1.3f, .repeat_below = 1.3f, .frequency = 0.5f, .presence = 0.25f};
stage top_k(int64_t k) { return {.kind = stage_kind::top_k, .k = k}; }
stage top_p(float p) { return {.kind = stage_kind::top_p, .p = p}; }
stage min_p(float p) { return {.kind = stage_kind::min_p, .p = std::log(p)}; }
stage temperature(float t) { return {.kind = stage_kind::temperature, .factor = 1 / t}; }
stage dynamic_temperature(int64_t n) { return {.kind = stage_kind::dynamic_temperature, .entropy_factor = 1 / std::log(static_cast<float>(n)), .exponent = 1.3f, .span = 1, .base = 0.4f}; }
const stage first = {.kind = stage_kind::first};

struct results {
    int32_t sampled = -7;
    std::vector<float> probabilities, logits;
    std::vector<int32_t> candidates;
};

results run(const std::vector<float> & row, const std::vector<stage> & stages, ending end, float uniform) {
    static list_sampler sampler;
    const auto n = static_cast<int64_t>(row.size()), places = places_after(stages, n);
    const bool candidates = std::any_of(stages.begin(), stages.end(), [](const stage & s) { return s.kind == stage_kind::top_k || s.kind == stage_kind::top_p || s.kind == stage_kind::first; });
    results r;
    r.probabilities.assign(static_cast<size_t>(places) + 1, -7); // one more, which must stay
    r.logits = r.probabilities;
    r.candidates.assign(static_cast<size_t>(places) + 1, -7);
    sampler.run(row.data(), n, stages, end, uniform, {&r.sampled, r.probabilities.data(), r.logits.data(), candidates ? r.candidates.data() : nullptr});
    EXPECT_EQ(-7, r.probabilities.back());
    EXPECT_EQ(-7, r.logits.back());
    EXPECT_EQ(-7, r.candidates.back());
    for (auto * v : {&r.probabilities, &r.logits}) v->pop_back();
    r.candidates.pop_back();
    if (!candidates) r.candidates.clear();
    return r;
}

// What is wrong with results, beside the definition (with a defect or not); "" if nothing.
std::string complaint(const std::vector<float> & row, const std::vector<stage> & stages, float uniform, const results & got, list_defect d) {
    const place_list few = test::define_list(row, stages, -1e-6, d), list = test::define_list(row, stages, 0, d), many = test::define_list(row, stages, 1e-6, d);
    if (list.size() != got.logits.size()) return "length";
    // A place more or fewer of a nucleus moves the entropy.
    const double tolerance = !stages.empty() && stages.back().kind == stage_kind::dynamic_temperature ? 1e-3 : 1e-5;
    place_list cut = list;
    for (size_t i = 0; i < list.size(); i++) {
        if (!got.candidates.empty() && got.candidates[i] != list[i].token) return "candidate " + std::to_string(i);
        const bool masked = got.logits[i] == -inf;
        if (masked != list[i].masked && !std::isinf(list[i].value) && few[i].masked == many[i].masked) return "mask of place " + std::to_string(i);
        if (got.logits[i] > -inf && std::abs(static_cast<double>(got.logits[i]) - list[i].value) > tolerance * std::max(1.0, std::abs(list[i].value))) return "logit of place " + std::to_string(i);
        cut[i].masked = masked;
    }
    const std::vector<double> shares = test::shares_of(cut);
    for (size_t i = 0; i < shares.size(); i++) {
        if (std::abs(static_cast<double>(got.probabilities[i]) - shares[i]) > 20 * tolerance * shares[i] + 1e-30) return "share of place " + std::to_string(i);
    }
    const size_t want = test::drawn_place(shares, static_cast<double>(uniform), d);
    if (want >= list.size()) return "place out of range";
    const auto at = static_cast<size_t>(std::find_if(list.begin(), list.end(), [&](const test::place & p) { return p.token == got.sampled; }) - list.begin());
    if (at >= list.size()) return "token";
    if (at != want && (list.size() == 2 || test::distance_to_share(shares, at, static_cast<double>(uniform)) > tolerance / 5)) return "drawn place";
    return "";
}

const std::vector<std::vector<stage>> chains = {
    {},
    {temperature(0.8f)},
    {top_k(10), top_p(0.9f), min_p(0.05f), temperature(0.8f)},
    {biases, penalties, top_k(50), top_p(0.9f), temperature(1.2f)},
    {biases, temperature(1)},
    {penalties, temperature(0.9f)},
    {top_p(0.9f), temperature(0.7f)},
    {temperature(0.7f), top_p(0.9f)},
    {top_p(0.95f), top_p(0.8f), min_p(0.02f)},
    {min_p(0.1f), temperature(2)},
    {min_p(0.5f)},
    {top_k(100), min_p(1), temperature(0.5f)},
    {top_p(0.5f), dynamic_temperature(300)},
    {min_p(0.2f), dynamic_temperature(300)},
    {top_k(5), first},
    {top_p(0.9f), first},
    {min_p(0.3f), first},
    {first},
};
const logits kinds[] = {logits::peaked, logits::bulk, logits::flat, logits::coarse, logits::equal, logits::masked, logits::nans, logits::one_finite, logits::dominant, logits::zeros, logits::shifted};

// Calls visit(row, stages, uniform, results) for many.
template <class Visit> void over_cases(Visit visit) {
    for (const std::vector<stage> & stages : chains) {
        ASSERT_TRUE(runs_as_list(stages));
        for (const logits kind : kinds) {
            for (const int64_t n : {300, 4200}) {
                const std::vector<float> row = test::make_logits(kind, n, 3);
                const std::vector<float> uniforms = n == 300 ? std::vector<float>{0, 0.3f, 0.5f, 0.77f, 0.9999f, 1} : std::vector<float>{0.3f};
                for (const float uniform : uniforms) visit(row, stages, uniform, run(row, stages, ending::draw, uniform));
                if (testing::Test::HasFatalFailure()) return;
            }
        }
    }
}

TEST(list_sampling, results_are_those_of_the_definition) {
    over_cases([](const std::vector<float> & row, const std::vector<stage> & stages, float uniform, const results & got) {
        ASSERT_EQ("", complaint(row, stages, uniform, got, list_defect::none)) << "n " << row.size() << ", " << stages.size() << " stages, uniform " << uniform;
    });
}

TEST(list_sampling, tests_see_every_defect) {
    for (int d = 1; d < static_cast<int>(list_defect::count); d++) {
        int seen = 0;
        over_cases([&](const std::vector<float> & row, const std::vector<stage> & stages, float uniform, const results & got) {
            if (seen == 0) seen += complaint(row, stages, uniform, got, static_cast<list_defect>(d)) != "";
        });
        // Rows made for what chance does not bring: a logit at the threshold, a running sum that is the uniform.
        std::vector<float> row(300, -20);
        row[3] = 0;
        row[5] = row[6] = 1;
        for (const std::vector<stage> & stages : {std::vector<stage>{{.kind = stage_kind::min_p, .p = -1}}, {top_k(2)}}) {
            for (const float uniform : {0.0f, 0.5f}) seen += complaint(row, stages, uniform, run(row, stages, ending::draw, uniform), static_cast<list_defect>(d)) != "";
        }
        EXPECT_GT(seen, 0) << "defect " << d;
    }
}

// Sums of hundreds of thousands: the uniform lies in the share of the token drawn, by the definition's sums.
TEST(list_sampling, long_nuclei_end_where_exact_sums_do) {
#ifdef ALLOY_EMULATED
    constexpr int64_t n = 20000;
#else
    constexpr int64_t n = 262144;
#endif
    for (const logits kind : {logits::bulk, logits::flat, logits::peaked}) {
        const std::vector<float> row = test::make_logits(kind, n, 1);
        for (const float uniform : {0.1f, 0.5f, 0.9f, 0.999999f}) {
            for (const std::vector<stage> & stages : {std::vector<stage>{top_p(0.95f)}, {temperature(0.8f)}, {min_p(0.001f)}}) {
                EXPECT_EQ("", complaint(row, stages, uniform, run(row, stages, ending::draw, uniform), list_defect::none)) << uniform;
            }
        }
    }
}

TEST(list_sampling, what_nobody_reads_changes_nothing_else) {
    list_sampler sampler;
    const std::vector<float> row = test::make_logits(logits::peaked, 3000, 2);
    for (const std::vector<stage> & stages : chains) {
        for (const float uniform : {0.2f, 0.8f}) {
            const results all = run(row, stages, ending::draw, uniform);
            int32_t sampled = -1;
            sampler.run(row.data(), 3000, stages, ending::draw, uniform, {&sampled, nullptr, nullptr, nullptr});
            EXPECT_EQ(all.sampled, sampled);
            std::vector<float> probabilities(all.probabilities.size());
            sampler.run(row.data(), 3000, stages, ending::draw, uniform, {nullptr, probabilities.data(), nullptr, nullptr});
            EXPECT_EQ(all.probabilities, probabilities);
            std::vector<float> list(all.logits.size());
            sampler.run(row.data(), 3000, stages, ending::list, 0, {nullptr, nullptr, list.data(), nullptr});
            EXPECT_EQ(all.logits, list);
        }
    }
}

TEST(list_sampling, argmax_is_a_place) {
    const std::vector<float> row = test::make_logits(logits::dominant, 3000, 2);
    const auto best = static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
    EXPECT_EQ(best, run(row, {}, ending::argmax, 0).sampled);
    EXPECT_EQ(best, run(row, {penalties}, ending::argmax, 0).sampled);
    EXPECT_EQ(best, run(row, {min_p(0.1f)}, ending::argmax, 0).sampled);
    EXPECT_EQ(0, run(row, {top_k(4)}, ending::argmax, 0).sampled);
}

TEST(list_sampling, rows_without_a_finite_highest_have_results) {
    for (const float x : {-inf, nan, inf}) {
        for (const std::vector<stage> & stages : chains) {
            for (const int64_t n : {60, 1000}) {
                std::vector<float> row(static_cast<size_t>(n), x);
                for (int i = 0; i < 2; i++) {
                    for (const ending end : {ending::draw, ending::argmax}) {
                        const results r = run(row, stages, end, 0.5f);
                        EXPECT_TRUE(r.sampled >= 0 && r.sampled < n);
                        for (const int32_t token : r.candidates) EXPECT_TRUE(token >= 0 && token < n);
                    }
                    row = test::make_logits(logits::bulk, n, 1); // the second time one such logit among others
                    row[51] = x;
                }
            }
        }
    }
}

TEST(list_sampling, tokens_out_of_range_are_passed_over) {
    const std::vector<float> row = test::make_logits(logits::bulk, 100, 1), values = {1, 2, 3};
    const std::vector<int32_t> tokens = {-1, 100, 2147483647}, ones = {1, 1, 1};
    const stage outside = {.kind = stage_kind::biases, .values = values, .tokens = tokens};
    stage past_outside = penalties;
    past_outside.tokens = tokens;
    past_outside.counts = ones;
    EXPECT_EQ(row, run(row, {outside, past_outside}, ending::list, 0).logits);
}

TEST(list_sampling, orders_that_do_not_run_here) {
    EXPECT_FALSE(runs_as_list(std::vector<stage>{penalties, biases}));
    EXPECT_FALSE(runs_as_list(std::vector<stage>{temperature(1), penalties}));
    EXPECT_FALSE(runs_as_list(std::vector<stage>{top_p(0.9f), top_k(5)}));
    EXPECT_FALSE(runs_as_list(std::vector<stage>{min_p(0.9f), top_k(5)}));
    EXPECT_FALSE(runs_as_list(std::vector<stage>{min_p(0.9f), top_p(0.5f)}));
    EXPECT_TRUE(runs_as_list(std::vector<stage>{top_k(9), min_p(0.9f), top_p(0.5f)}));
}

} // namespace
} // namespace alloy
