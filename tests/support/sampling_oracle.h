// The chain of samplers as a definition: double precision, a full stable sort, one filter after another. `defect` builds in a mistake
// that implementations are known to make; the tests must be able to tell each from the truth.
#pragma once
#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace alloy::test {

enum class defect { none, strict_min_p, ties_over_accepted, ties_by_higher_id, nucleus_one_short, nucleus_one_long, top_p_of_full_mass, tempered_filters, sigma_counts_masked, count };

struct expected_set {
    std::vector<int32_t> order;   // all tokens above -inf, in the total order
    std::vector<double> logits;   // of `order`
    size_t size = 0;              // how many of `order` survive
    size_t least = 0, most = 0;   // sizes that rounding at a boundary may give
    bool by_vocabulary = false;   // the draw walks ascending ids
};

inline std::vector<float> edited(const std::vector<float> & x, const sampling::chain & c) {
    std::vector<float> y = x;
    const auto inside = [&](int32_t token) { return token >= 0 && static_cast<size_t>(token) < y.size(); };
    for (const auto & b : c.biases) {
        if (inside(b.token)) y[static_cast<size_t>(b.token)] += b.bias;
    }
    for (const auto & t : c.counts) {
        if (!inside(t.token) || t.count < 1) continue;
        float & l = y[static_cast<size_t>(t.token)];
        l = l <= 0 ? l * c.repeat_penalty : l / c.repeat_penalty;
        l -= static_cast<float>(t.count) * c.frequency_penalty + c.presence_penalty;
    }
    return y;
}

inline expected_set oracle_set(const std::vector<float> & x, const sampling::chain & c, defect d = defect::none) {
    constexpr double inf = std::numeric_limits<double>::infinity();
    std::vector<double> y;
    for (const float l : edited(x, c)) y.push_back(std::isnan(l) ? -inf : static_cast<double>(l));
    expected_set s;
    const double highest = y.empty() ? -inf : *std::max_element(y.begin(), y.end());
    if (highest == inf) { // infinite logits share everything
        for (double & l : y) l = l == inf ? 0 : -inf;
    }
    for (size_t i = 0; i < y.size(); i++) {
        if (y[i] > -inf) s.order.push_back(static_cast<int32_t>(i));
    }
    std::stable_sort(s.order.begin(), s.order.end(), [&](int32_t a, int32_t b) {
        const double u = y[static_cast<size_t>(a)], v = y[static_cast<size_t>(b)];
        return d == defect::ties_by_higher_id && u == v ? a > b : u > v;
    });
    for (const int32_t id : s.order) s.logits.push_back(y[static_cast<size_t>(id)]);
    s.size = s.order.size();
    s.by_vocabulary = true;
    if (s.size == 0) return s;
    if (c.temperature <= 0) {
        s.size = s.least = s.most = 1;
        return s;
    }
    const double top = s.logits[0];
    size_t least = s.size, most = s.size;
    const auto first_below = [&](double lowest) {
        return static_cast<size_t>(std::find_if(s.logits.begin(), s.logits.end(), [&](double l) { return l < lowest; }) - s.logits.begin());
    };
    if (c.top_n_sigma > 0) {
        double sum = 0, squares = 0;
        for (const double l : s.logits) sum += l;
        const double num = d == defect::sigma_counts_masked ? static_cast<double>(x.size()) : static_cast<double>(s.logits.size());
        const double mean = sum / num;
        for (const double l : s.logits) squares += (l - mean) * (l - mean);
        const double lowest = top - static_cast<double>(c.top_n_sigma) * std::sqrt(squares / num);
        const double slack = 1e-5 * (1 + std::fabs(top) + (top - lowest)) * (lowest == top ? 0 : 1);
        if (std::isfinite(lowest)) {
            s.size = first_below(lowest);
            least = std::max<size_t>(1, first_below(lowest + slack));
            most = first_below(lowest - slack);
        }
    }
    const size_t before_top_k = s.size;
    if (c.top_k > 0) {
        s.by_vocabulary = false;
        const auto k = static_cast<size_t>(std::min<int64_t>(c.top_k, static_cast<int64_t>(s.size)));
        s.size = k;
        if (d == defect::ties_over_accepted) {
            while (s.size < before_top_k && s.logits[s.size] == s.logits[k - 1]) s.size++;
        }
        least = std::min(least, s.size);
        most = std::min(most, static_cast<size_t>(c.top_k));
        if (d == defect::ties_over_accepted) most = std::max(most, s.size);
    }
    const double scale = d == defect::tempered_filters ? 1 / static_cast<double>(c.temperature) : 1;
    const auto min_keep = static_cast<size_t>(std::max<int64_t>(c.min_keep, 0));
    if (c.top_p < 1) {
        s.by_vocabulary = false;
        const size_t of = d == defect::top_p_of_full_mass ? s.order.size() : s.size;
        double total = 0, run = 0;
        for (size_t i = 0; i < of; i++) total += std::exp((s.logits[i] - top) * scale);
        size_t n = 0, low = 0, high = 0;
        while (n < s.size) {
            run += std::exp((s.logits[n++] - top) * scale) / total;
            if (low == 0 && run >= static_cast<double>(c.top_p) - 1e-6) low = n;
            if (high == 0 && run >= static_cast<double>(c.top_p) + 1e-6) high = n;
        }
        run = 0;
        n = 0;
        while (n < s.size) {
            run += std::exp((s.logits[n++] - top) * scale) / total;
            if (run >= static_cast<double>(c.top_p) && n >= min_keep) break;
        }
        if (d == defect::nucleus_one_short && n > 1) n--;
        if (d == defect::nucleus_one_long && n < s.size) n++;
        const size_t fewer = s.size - std::min(least, s.size), more = std::max(most, s.size) - s.size; // of what a filter before may have kept
        least = std::max(low == 0 ? s.size : low, std::min(min_keep, s.size));
        least -= std::min(fewer, least - 1);
        most = std::max(n, std::max(high == 0 ? s.size : high, std::min(min_keep, s.size))) + more;
        if (d != defect::none) least = most = n;
        s.size = n;
    }
    if (c.min_p > 0) {
        const float lowest = static_cast<float>(top) + std::log(c.min_p);
        const auto cut = [&](size_t size) {
            size_t n = 1;
            while (n < size && ((d == defect::strict_min_p ? s.logits[n] > static_cast<double>(lowest) : s.logits[n] >= static_cast<double>(lowest)) || n < min_keep)) n++;
            return std::min(n, size);
        };
        if (first_below(lowest) < std::max<size_t>(1, min_keep)) s.by_vocabulary = false;
        s.size = cut(s.size);
        least = cut(least);
        most = cut(most);
    }
    s.least = std::min(least, s.size);
    s.most = std::max(most, s.size);
    return s;
}

// Rows as samplers meet them, and worse.
enum class logits { bulk, peaked, flat, coarse, equal, masked, nans, one_finite, infinite, dominant, ascending, zeros, denormal, shifted, count };

inline std::vector<float> make_logits(logits what, int64_t n, uint64_t salt) {
    constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    std::mt19937_64 engine(salt * 977 + static_cast<uint64_t>(what) + 1);
    std::normal_distribution<float> normal(0, 1);
    std::vector<float> x(static_cast<size_t>(n));
    const auto chosen = static_cast<int64_t>(engine() % static_cast<uint64_t>(n));
    for (int64_t i = 0; i < n; i++) {
        float y = 2 * normal(engine);
        const uint64_t dice = engine() % 8;
        switch (what) {
            case logits::peaked: y += engine() % 512 == 0 || i == chosen ? 14.0f : 0.0f; break;
            case logits::flat: y *= 0.5f; break;
            case logits::coarse: y = std::round(y); break;
            case logits::equal: y = 1.5f; break;
            case logits::masked: y = dice < 6 ? -inf : y; break;
            case logits::nans: y = dice == 0 ? nan : dice == 1 ? -inf : y; break;
            case logits::one_finite: y = i == chosen ? y : -inf; break;
            case logits::infinite: y = dice == 0 ? inf : y; break;
            case logits::dominant: y = i == chosen ? 25.0f : y; break;
            case logits::ascending: y = static_cast<float>(i % 1000) * 0.01f; break;
            case logits::zeros: y = dice < 4 ? -0.0f : 0.0f; break;
            case logits::denormal: y *= 1e-42f; break;
            case logits::shifted: y = 5 * y + 900; break;
            default: break;
        }
        x[static_cast<size_t>(i)] = y;
    }
    return x;
}

} // namespace alloy::test
