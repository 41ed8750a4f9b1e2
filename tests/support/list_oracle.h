// The chains of list_sampler.h as a definition: the whole list in double precision, one stage after another. `list_defect` builds in a mistake that
// implementations are known to make; the tests must be able to tell each from the truth.
#pragma once
#include "sampling/list_sampler.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace alloy::test {

enum class list_defect { none, strict_min_p, nucleus_excludes_its_end, top_p_of_masked_mass, biases_add_up, counts_of_zero_penalised, filters_see_temperature, draw_reaches, no_clamp, count };

struct place {
    double value;
    int32_t token;
    bool masked = false;
};
using place_list = std::vector<place>;

inline double ordered(float x) { return std::isnan(x) ? -std::numeric_limits<double>::infinity() : static_cast<double>(x); }

inline double highest_of_list(const place_list & list) {
    double top = -std::numeric_limits<double>::infinity();
    for (const place & p : list) {
        if (!p.masked && p.value > top) top = p.value;
    }
    return top;
}

inline std::vector<double> shares_of(const place_list & list) {
    const double top = highest_of_list(list);
    std::vector<double> shares;
    double sum = 0;
    for (const place & p : list) {
        shares.push_back(p.masked ? 0 : std::exp(p.value - top));
        sum += shares.back();
    }
    for (double & s : shares) s /= sum;
    return shares;
}

inline void sort_list(place_list & list) {
    std::stable_sort(list.begin(), list.end(), [](const place & a, const place & b) { return !a.masked && (b.masked || a.value > b.value); });
}

inline void apply_stage(place_list & list, const sampling::stage & s, double slack, list_defect d) {
    using sampling::stage_kind;
    switch (s.kind) {
        case stage_kind::biases: {
            const place_list before = list;
            for (size_t i = 0; i < s.tokens.size(); i++) {
                const auto at = static_cast<size_t>(s.tokens[i]);
                const double x = d == list_defect::biases_add_up ? list[at].value : before[at].value;
                list[at].value = ordered(static_cast<float>(x) + s.values[i]);
            }
            break;
        }
        case stage_kind::penalties:
            for (size_t i = 0; i < s.tokens.size(); i++) {
                if (s.counts[i] <= 0 && d != list_defect::counts_of_zero_penalised) continue;
                double & x = list[static_cast<size_t>(s.tokens[i])].value;
                auto y = static_cast<float>(x);
                y *= y > 0 ? s.repeat_above : s.repeat_below;
                x = ordered(y - static_cast<float>(s.counts[i]) * s.frequency - s.presence);
            }
            break;
        case stage_kind::top_k:
            sort_list(list);
            list.resize(std::min(list.size(), static_cast<size_t>(s.k)));
            break;
        case stage_kind::top_p: {
            sort_list(list);
            place_list all = list;
            if (d == list_defect::top_p_of_masked_mass) {
                for (place & p : all) p.masked = false;
            }
            const std::vector<double> shares = shares_of(all);
            double run = 0;
            bool reached = false;
            for (size_t i = 0; i < list.size(); i++) {
                run += shares[i];
                const bool reaches = run >= static_cast<double>(s.p) + slack;
                list[i].masked = list[i].masked || reached || (d == list_defect::nucleus_excludes_its_end && reaches && i > 0);
                reached = reached || reaches;
            }
            break;
        }
        case stage_kind::min_p: {
            const float lowest = static_cast<float>(highest_of_list(list)) + s.p;
            const double top = highest_of_list(list);
            for (place & p : list) {
                const bool kept = p.value >= static_cast<double>(lowest) && (d != list_defect::strict_min_p || p.value > static_cast<double>(lowest) || p.value == top);
                p.masked = p.masked || !kept;
            }
            break;
        }
        case stage_kind::temperature:
            for (place & p : list) p.value = ordered(static_cast<float>(p.value) * s.factor);
            break;
        case stage_kind::dynamic_temperature: {
            double entropy = 0;
            for (const double share : shares_of(list)) entropy -= std::clamp(share, 1e-10, 1.0) * std::log(std::clamp(share, 1e-10, 1.0));
            const double t = static_cast<double>(s.base) + static_cast<double>(s.span) * std::pow(entropy * static_cast<double>(s.entropy_factor), static_cast<double>(s.exponent));
            for (place & p : list) p.value /= t;
            break;
        }
        case stage_kind::first:
            sort_list(list);
            list.resize(1);
            break;
    }
}

// `slack` moves the ends of nuclei: what rounding may do.
inline place_list define_list(const std::vector<float> & row, std::span<const sampling::stage> stages, double slack = 0, list_defect d = list_defect::none) {
    place_list list;
    for (size_t i = 0; i < row.size(); i++) list.push_back({ordered(row[i]), static_cast<int32_t>(i)});
    std::vector<sampling::stage> order(stages.begin(), stages.end());
    if (d == list_defect::filters_see_temperature && !order.empty()) std::rotate(order.begin(), order.end() - 1, order.end());
    for (const sampling::stage & s : order) apply_stage(list, s, slack, d);
    return list;
}

// The first place whose running share exceeds the uniform; else the last with a share.
inline size_t drawn_place(const std::vector<double> & shares, double uniform, list_defect d = list_defect::none) {
    double run = 0;
    size_t last = 0;
    for (size_t i = 0; i < shares.size(); i++) {
        run += shares[i];
        if (shares[i] > 0) last = i;
        if (run > uniform || (d == list_defect::draw_reaches && run == uniform)) return i;
    }
    return d == list_defect::no_clamp ? shares.size() : last;
}

// How far the uniform is from the share of place `at`.
inline double distance_to_share(const std::vector<double> & shares, size_t at, double uniform) {
    double run = 0;
    for (size_t i = 0; i < at; i++) run += shares[i];
    return std::max({0.0, run - uniform, uniform - (run + shares[at])});
}

} // namespace alloy::test
