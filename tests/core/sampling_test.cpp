// The sampler against its definition in double precision: the sets, the draw at every step of its distribution, the distribution itself,
// and mistakes that these tests must be able to see.
#include "plugin/c_api.h"
#include "sampling/sampler.h"
#include "support/sampling_oracle.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

namespace alloy {
namespace {

using sampling::chain;
using sampling::sampler;
using sampling::status;
using test::defect;
using test::expected_set;

constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

#ifdef ALLOY_EMULATED
constexpr int rounds = 1, share_of_draws = 10; // an emulator takes a hundred times as long
const std::vector<int64_t> lengths = {1, 3, 129, 1000, 5003};
#else
constexpr int rounds = 6, share_of_draws = 1;
const std::vector<int64_t> lengths = {1, 2, 3, 7, 127, 129, 300, 1000, 5003, 33000};
#endif

struct named_chain {
    const char * name;
    chain c;
};

const std::vector<named_chain> & chains() {
    static const std::vector<named_chain> all = {
        {"nothing", {}},
        {"default", {.top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .temperature = 0.8f}},
        {"greedy", {.top_k = 40, .temperature = 0}},
        {"top_k_1", {.top_k = 1}},
        {"top_k_2", {.top_k = 2}},
        {"top_k_40", {.top_k = 40}},
        {"top_k_1000", {.top_k = 1000, .top_p = 0.95f, .temperature = 1.3f}},
        {"top_k_all", {.top_k = 1 << 30}},
        {"top_p", {.top_p = 0.95f}},
        {"top_p_half", {.top_p = 0.5f, .temperature = 0.7f}},
        {"top_p_tiny", {.top_p = 1e-6f}},
        {"top_p_nearly_1", {.top_p = 0.999f, .temperature = 2}},
        {"top_p_min_keep", {.top_p = 0.1f, .min_keep = 50}},
        {"top_p_long_min_keep", {.top_p = 0.1f, .min_keep = 700}},
        {"top_p_min_p", {.top_p = 0.98f, .min_p = 0.02f, .temperature = 0.9f}},
        {"min_p", {.min_p = 0.05f}},
        {"min_p_small", {.min_p = 1e-4f, .temperature = 1.5f}},
        {"min_p_1", {.min_p = 1}},
        {"min_p_above_1", {.min_p = 2}},
        {"min_p_min_keep", {.min_p = 0.5f, .min_keep = 90}},
        {"sigma", {.top_n_sigma = 1}},
        {"sigma_top_p", {.top_n_sigma = 2, .top_p = 0.9f, .temperature = 1.1f}},
        {"sigma_top_k", {.top_n_sigma = 1.5f, .top_k = 40, .min_p = 0.1f}},
        {"hot", {.temperature = 5}},
        {"cold", {.temperature = 1e-30f}},
        {"cold_top_p", {.top_p = 0.95f, .temperature = 1e-4f}},
    };
    return all;
}

// Beginning of the order of a size that rounding allows, no more.
testing::AssertionResult set_is(const std::vector<sampling::survivor> & got, const expected_set & want) {
    if (got.size() < want.least || got.size() > want.most) {
        return testing::AssertionFailure() << got.size() << " tokens instead of " << want.size << " (" << want.least << " to " << want.most << ")";
    }
    for (size_t i = 0; i < got.size(); i++) {
        if (got[i].token != want.order[i]) return testing::AssertionFailure() << "place " << i << ": token " << got[i].token << " instead of " << want.order[i];
    }
    return testing::AssertionSuccess();
}

template <class Check> void over_rows(Check check) {
    sampler s;
    uint64_t salt = 0;
    for (const int64_t n : lengths) {
        for (int what = 0; what < static_cast<int>(test::logits::count); what++) {
            for (int round = 0; round < (n < 2000 ? rounds : 1); round++) {
                const std::vector<float> x = test::make_logits(static_cast<test::logits>(what), n, salt++);
                for (const named_chain & c : chains()) {
                    SCOPED_TRACE(testing::Message() << "n " << n << ", kind " << what << ", round " << round << ", chain " << c.name);
                    check(s, x, c.c);
                    if (testing::Test::HasFailure()) return;
                }
            }
        }
    }
}

TEST(sampling, sets_are_those_of_a_stable_sort) {
    over_rows([](sampler & s, const std::vector<float> & x, const chain & c) {
        std::vector<sampling::survivor> got;
        const expected_set want = test::oracle_set(x, c);
        ASSERT_EQ(want.size == 0 ? status::no_token : status::ok, s.survivors(x.data(), static_cast<int64_t>(x.size()), c, got));
        ASSERT_TRUE(set_is(got, want));
    });
}

// The weights of a set in the order of the draw.
struct law {
    std::vector<int32_t> tokens;
    std::vector<double> ends; // running shares, the last is 1
};
law law_of(const expected_set & set, size_t size, float temperature) {
    std::vector<size_t> places(size);
    std::iota(places.begin(), places.end(), size_t{0});
    if (set.by_vocabulary) std::sort(places.begin(), places.end(), [&](size_t a, size_t b) { return set.order[a] < set.order[b]; });
    law l;
    double run = 0;
    const auto weight = [&](size_t i) { return temperature > 0 ? std::exp((set.logits[i] - set.logits[0]) / static_cast<double>(temperature)) : 1; };
    for (const size_t i : places) {
        l.tokens.push_back(set.order[i]);
        l.ends.push_back(run += weight(i));
    }
    for (double & e : l.ends) e /= run;
    return l;
}

TEST(sampling, draws_what_the_uniform_says) {
    over_rows([](sampler & s, const std::vector<float> & x, const chain & c) {
        const auto n = static_cast<int64_t>(x.size());
        std::vector<sampling::survivor> got;
        expected_set set = test::oracle_set(x, c);
        if (set.size == 0) {
            ASSERT_EQ(status::no_token, s.sample(x.data(), n, c, 0.5).result);
            return;
        }
        s.survivors(x.data(), n, c, got);
        const law l = law_of(set, got.size(), c.temperature);
        const auto expect_near = [&](double u) {
            const sampling::draw d = s.sample(x.data(), n, c, u);
            ASSERT_EQ(status::ok, d.result);
            // every token that owns a uniform within 2e-5 of this one
            const auto at = [&](double v) { return std::lower_bound(l.ends.begin(), l.ends.end(), v) - l.ends.begin(); };
            const auto low = at(u - 2e-5), high = std::min<ptrdiff_t>(at(u + 2e-5), static_cast<ptrdiff_t>(l.ends.size()) - 1);
            const auto found = std::find(l.tokens.begin() + low, l.tokens.begin() + high + 1, d.token);
            ASSERT_NE(l.tokens.begin() + high + 1, found) << "u " << u << ": token " << d.token;
            const auto place = static_cast<size_t>(found - l.tokens.begin());
            const double share = l.ends[place] - (place > 0 ? l.ends[place - 1] : 0);
            ASSERT_GT(d.probability, 0.0f);
            ASSERT_NEAR(share, d.probability, 1e-4 * share + 1e-7);
        };
        for (const double u : {0.0, 0x1p-1074, 0x1p-53, 0.1, 0.37, 0.5, 0.91, 1 - 0x1p-24, 1 - 0x1p-53, 1.0}) expect_near(u);
        if (n > 1000) return;
        for (size_t i = 0; i < l.ends.size() && i < 60; i++) {
            for (const double u : {std::nextafter(l.ends[i], 0.0), l.ends[i], std::nextafter(l.ends[i], 2.0)}) expect_near(std::min(u, 1.0));
        }
    });
}

// Between two steps there is no doubt.
TEST(sampling, the_middle_of_a_step_gives_its_token) {
    sampler s;
    for (const named_chain & c : chains()) {
        const std::vector<float> x = test::make_logits(test::logits::peaked, 700, 5);
        std::vector<sampling::survivor> got;
        s.survivors(x.data(), 700, c.c, got);
        const law l = law_of(test::oracle_set(x, c.c), got.size(), c.c.temperature);
        for (size_t i = 0; i < l.ends.size(); i++) {
            const double begin = i > 0 ? l.ends[i - 1] : 0;
            if (l.ends[i] - begin < 1e-6) continue;
            ASSERT_EQ(l.tokens[i], s.sample(x.data(), 700, c.c, (begin + l.ends[i]) / 2).token) << c.name << ", step " << i;
        }
    }
}

// Pearson's statistic as a normal deviate (Wilson and Hilferty), cells pooled to 10 expected draws; and Kolmogorov and Smirnov's on the place
// in the order of the draw.
TEST(sampling, follows_the_distribution) {
    struct row { test::logits what; int64_t n; int draws; };
    for (const row & r : {row{test::logits::peaked, 3000, 20000}, row{test::logits::bulk, 3000, 10000}, row{test::logits::flat, 20000, 2000}}) {
        const std::vector<float> x = test::make_logits(r.what, r.n, 11);
        for (const named_chain & c : chains()) {
            if (c.c.temperature <= 0 || c.c.temperature < 1e-3f) continue;
            sampler s;
            std::vector<sampling::survivor> got;
            s.survivors(x.data(), r.n, c.c, got);
            const law l = law_of(test::oracle_set(x, c.c), got.size(), c.c.temperature);
            std::map<int32_t, size_t> place;
            for (size_t i = 0; i < l.tokens.size(); i++) place[l.tokens[i]] = i;
            std::vector<double> counts(l.tokens.size(), 0);
            const int draws = r.draws / share_of_draws;
            std::mt19937 engine(77);
            std::uniform_real_distribution<double> uniform(0, 1);
            for (int i = 0; i < draws; i++) {
                const int32_t token = s.sample(x.data(), r.n, c.c, uniform(engine)).token;
                ASSERT_TRUE(place.count(token)) << c.name << ": token " << token << " is not in the set";
                counts[place[token]]++;
            }
            double chi = 0, cells = 0, want = 0, seen = 0, run = 0, distance = 0;
            for (size_t i = 0; i < counts.size(); i++) {
                want += (l.ends[i] - (i > 0 ? l.ends[i - 1] : 0)) * draws;
                seen += counts[i];
                run += counts[i];
                distance = std::max(distance, std::fabs(run / draws - l.ends[i]));
                if (want < 10 && i + 1 < counts.size()) continue;
                if (want > 0) chi += (seen - want) * (seen - want) / want;
                cells++;
                want = seen = 0;
            }
            EXPECT_LT(distance * std::sqrt(draws), 1.95) << c.name << ", n " << r.n;
            const double freedom = cells - 1;
            if (freedom < 1) continue;
            const double z = (std::cbrt(chi / freedom) - (1 - 2 / (9 * freedom))) / std::sqrt(2 / (9 * freedom));
            EXPECT_LT(std::fabs(z), 4) << c.name << ", n " << r.n << ", " << cells << " cells";
        }
    }
}

TEST(sampling, grows_with_the_uniform) {
    sampler s;
    const std::vector<float> x = test::make_logits(test::logits::bulk, 20000, 3);
    for (const named_chain & c : chains()) {
        const law l = law_of(test::oracle_set(x, c.c), test::oracle_set(x, c.c).most, c.c.temperature);
        std::map<int32_t, size_t> place;
        for (size_t i = 0; i < l.tokens.size(); i++) place[l.tokens[i]] = i;
        size_t before = 0;
        for (int i = 0; i <= 400; i++) {
            const size_t now = place.at(s.sample(x.data(), 20000, c.c, i / 400.0).token);
            ASSERT_GE(now, before) << c.name << ", u " << i / 400.0;
            before = now;
        }
    }
}

std::set<int32_t> tokens_of(sampler & s, const std::vector<float> & x, const chain & c) {
    std::vector<sampling::survivor> got;
    s.survivors(x.data(), static_cast<int64_t>(x.size()), c, got);
    std::set<int32_t> tokens;
    for (const auto & g : got) tokens.insert(g.token);
    return tokens;
}

TEST(sampling, metamorphic) {
    sampler s;
    std::vector<float> x = test::make_logits(test::logits::bulk, 4096, 21);
    for (float & l : x) l = std::round(l * 1024) / 1024; // so that adding 8 is exact
    std::vector<float> shifted = x, permuted = x;
    for (float & l : shifted) l += 8;
    const auto place = [](size_t i) { return i * 1337 % 4096; };
    for (size_t i = 0; i < x.size(); i++) permuted[place(i)] = x[i];
    for (const named_chain & c : chains()) {
        const std::set<int32_t> tokens = tokens_of(s, x, c.c);
        if (c.c.top_n_sigma <= 0) EXPECT_EQ(tokens, tokens_of(s, shifted, c.c)) << c.name;
        if (std::string_view(c.name) == "top_k_40" || std::string_view(c.name) == "min_p") {
            chain hot = c.c;
            hot.temperature = 3;
            EXPECT_EQ(tokens, tokens_of(s, x, hot)) << c.name;
        }
        std::multiset<float> values, moved;
        for (const int32_t t : tokens) values.insert(x[static_cast<size_t>(t)]);
        for (const int32_t t : tokens_of(s, permuted, c.c)) moved.insert(permuted[static_cast<size_t>(t)]);
        EXPECT_EQ(values.size(), moved.size()) << c.name;
        EXPECT_EQ(values, moved) << c.name;
    }
    std::set<int32_t> inner;
    for (const int k : {1, 3, 40, 300, 2000}) {
        const std::set<int32_t> outer = tokens_of(s, x, {.top_k = k});
        EXPECT_TRUE(std::includes(outer.begin(), outer.end(), inner.begin(), inner.end()));
        inner = outer;
    }
    inner.clear();
    for (const float p : {0.01f, 0.3f, 0.7f, 0.95f, 0.999f}) {
        const std::set<int32_t> outer = tokens_of(s, x, {.top_p = p});
        EXPECT_TRUE(std::includes(outer.begin(), outer.end(), inner.begin(), inner.end()));
        inner = outer;
    }
}

TEST(sampling, biases_and_penalties) {
    sampler s;
    const std::vector<float> x = test::make_logits(test::logits::peaked, 2000, 8);
    const std::vector<float> before = x;
    const std::vector<sampling::token_bias> biases = {{5, 30.0f}, {7, -inf}, {5, 1.0f}, {-1, 9}, {2000, 9}};
    const std::vector<sampling::token_count> counts = {{5, 2}, {9, 1}, {11, 0}, {-3, 4}, {5000, 1}};
    const chain c = {.biases = biases, .counts = counts, .repeat_penalty = 1.3f, .frequency_penalty = 0.2f, .presence_penalty = 0.1f, .top_k = 20};
    std::vector<sampling::survivor> got;
    ASSERT_EQ(status::ok, s.survivors(x.data(), 2000, c, got));
    EXPECT_TRUE(set_is(got, test::oracle_set(x, c)));
    EXPECT_EQ(5, got[0].token);
    EXPECT_EQ((x[5] + 31.0f) / 1.3f - (0.4f + 0.1f), got[0].logit);
    EXPECT_EQ(before, x);
    const std::vector<sampling::token_bias> all_but_one = [&] {
        std::vector<sampling::token_bias> b;
        for (int32_t t = 0; t < 2000; t++) {
            if (t != 1234) b.push_back({t, -inf});
        }
        return b;
    }();
    EXPECT_EQ(1234, s.sample(x.data(), 2000, {.biases = all_but_one, .top_p = 0.9f}, 0.99).token);
}

TEST(sampling, bad_input) {
    sampler s;
    const std::vector<float> x = test::make_logits(test::logits::bulk, 500, 1);
    const auto result = [&](const chain & c, double u = 0.5) { return s.sample(x.data(), 500, c, u).result; };
    for (const double u : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN(), -HUGE_VAL, HUGE_VAL}) EXPECT_EQ(status::bad_argument, result({}, u)) << u;
    EXPECT_EQ(status::bad_argument, result({.top_p = nan}));
    EXPECT_EQ(status::bad_argument, result({.min_p = nan}));
    EXPECT_EQ(status::bad_argument, result({.temperature = nan}));
    EXPECT_EQ(status::bad_argument, result({.top_n_sigma = nan}));
    EXPECT_EQ(status::bad_argument, result({.repeat_penalty = 0}));
    EXPECT_EQ(status::bad_argument, s.sample(nullptr, 5, {}, 0.5).result);
    EXPECT_EQ(status::bad_argument, s.sample(x.data(), 0, {}, 0.5).result);
    EXPECT_EQ(status::bad_argument, s.sample(x.data(), -3, {}, 0.5).result);
    for (const chain & c : {chain{.top_k = 0}, chain{.top_k = -5}, chain{.top_k = INT64_MAX}, chain{.top_p = -1}, chain{.top_p = 0}, chain{.top_p = 2}, chain{.top_p = -inf},
                            chain{.min_p = -1}, chain{.min_p = 7}, chain{.min_p = inf}, chain{.min_keep = INT64_MAX}, chain{.top_p = 0.5f, .min_keep = INT64_MAX},
                            chain{.min_p = 0.5f, .min_keep = INT64_MAX}, chain{.temperature = -inf}, chain{.temperature = inf}, chain{.top_n_sigma = inf}, chain{.temperature = 1e-45f}}) {
        const sampling::draw d = s.sample(x.data(), 500, c, 0.5);
        EXPECT_EQ(status::ok, d.result);
        EXPECT_TRUE(d.token >= 0 && d.token < 500);
    }
    for (const float fill : {nan, -inf}) {
        const std::vector<float> none(500, fill);
        for (const named_chain & c : chains()) {
            const sampling::draw d = s.sample(none.data(), 500, c.c, 0.5);
            EXPECT_EQ(status::no_token, d.result) << c.name;
            EXPECT_EQ(-1, d.token);
        }
    }
}

TEST(sampling, repeats_bit_for_bit) {
    const std::vector<float> x = test::make_logits(test::logits::flat, 20000, 4), other = test::make_logits(test::logits::nans, 33000, 5);
    for (const named_chain & c : chains()) {
        sampler fresh, used;
        used.sample(other.data(), 33000, c.c, 0.3);
        for (const double u : {0.01, 0.5, 0.99}) {
            const sampling::draw a = fresh.sample(x.data(), 20000, c.c, u), b = used.sample(x.data(), 20000, c.c, u);
            EXPECT_EQ(a.token, b.token) << c.name;
            EXPECT_EQ(a.probability, b.probability) << c.name;
        }
    }
}

TEST(sampling, c_api) {
    const ggml_alloy_api * api = plugin::ggml_alloy_get_api(GGML_ALLOY_API_VERSION);
    ASSERT_NE(nullptr, api);
    EXPECT_EQ(nullptr, plugin::ggml_alloy_get_api(GGML_ALLOY_API_VERSION + 1));
    ggml_alloy_sampler * s = api->sampler_new();
    ASSERT_NE(nullptr, s);
    const std::vector<float> x = test::make_logits(test::logits::peaked, 3000, 2);
    ggml_alloy_chain c = api->default_chain();
    ggml_alloy_draw d = {7, 7};
    sampler own;
    for (const double u : {0.0, 0.3, 0.999}) {
        ASSERT_EQ(GGML_ALLOY_OK, api->sample(s, x.data(), 3000, &c, u, &d));
        EXPECT_EQ(own.sample(x.data(), 3000, {}, u).token, d.token);
    }
    const ggml_alloy_token_bias biases[] = {{17, 100.0f}, {18, 99.0f}};
    const ggml_alloy_token_count counts[] = {{17, 2}};
    c.biases = biases;
    c.num_biases = 2;
    c.counts = counts;
    c.num_counts = 1;
    c.presence_penalty = 50;
    c.top_k = 5;
    c.min_p = 0.5f;
    int32_t tokens[2] = {-7, -7};
    float logits[2];
    EXPECT_EQ(1, api->candidates(s, x.data(), 3000, &c, tokens, logits, 2));
    EXPECT_EQ(18, tokens[0]);
    EXPECT_EQ(x[18] + 99, logits[0]);
    EXPECT_EQ(-7, tokens[1]);
    c.min_p = 0;
    EXPECT_EQ(5, api->candidates(s, x.data(), 3000, &c, tokens, logits, 1));
    EXPECT_EQ(-7, tokens[1]);
    EXPECT_EQ(GGML_ALLOY_BAD_ARGUMENT, api->sample(s, x.data(), 3000, &c, 1.5, &d));
    EXPECT_EQ(-1, d.token);
    EXPECT_EQ(GGML_ALLOY_BAD_ARGUMENT, api->sample(s, x.data(), 3000, &c, 0.5, nullptr));
    EXPECT_EQ(GGML_ALLOY_BAD_ARGUMENT, api->sample(nullptr, x.data(), 3000, &c, 0.5, &d));
    EXPECT_EQ(GGML_ALLOY_BAD_ARGUMENT, api->sample(s, nullptr, 3000, &c, 0.5, &d));
    EXPECT_EQ(GGML_ALLOY_BAD_ARGUMENT, api->sample(s, x.data(), 3000, nullptr, 0.5, &d));
    c.size = 8;
    EXPECT_EQ(GGML_ALLOY_BAD_ARGUMENT, api->sample(s, x.data(), 3000, &c, 0.5, &d));
    c = api->default_chain();
    c.num_biases = 3;
    EXPECT_EQ(GGML_ALLOY_BAD_ARGUMENT, api->candidates(s, x.data(), 3000, &c, tokens, logits, 2));
    c = api->default_chain();
    const std::vector<float> masked(100, -inf);
    EXPECT_EQ(GGML_ALLOY_NO_TOKEN, api->sample(s, masked.data(), 100, &c, 0.5, &d));
    EXPECT_EQ(GGML_ALLOY_NO_TOKEN, api->candidates(s, masked.data(), 100, &c, nullptr, nullptr, 0));
    api->sampler_free(s);
    api->sampler_free(nullptr);
}

// The sets above would not agree with an implementation that has one of these defects.
TEST(sampling, tests_see_every_defect) {
    for (int d = 1; d < static_cast<int>(defect::count); d++) {
        bool seen = false;
        for (uint64_t salt = 0; salt < 4 && !seen; salt++) {
            for (int what = 0; what < static_cast<int>(test::logits::count) && !seen; what++) {
                const std::vector<float> x = test::make_logits(static_cast<test::logits>(what), 300, salt);
                for (const named_chain & c : chains()) {
                    const expected_set wrong = test::oracle_set(x, c.c, static_cast<defect>(d));
                    std::vector<sampling::survivor> got;
                    for (size_t i = 0; i < wrong.size; i++) got.push_back({wrong.order[i], 0});
                    seen = seen || !set_is(got, test::oracle_set(x, c.c));
                }
            }
        }
        EXPECT_TRUE(seen) << "defect " << d;
    }
}

} // namespace
} // namespace alloy
