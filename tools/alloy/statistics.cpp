#include "statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace alloy::tool {

constexpr double nothing = std::numeric_limits<double>::quiet_NaN();

double quantile(std::vector<double> values, double share) {
    if (values.empty()) return nothing;
    std::sort(values.begin(), values.end());
    const double place = share * static_cast<double>(values.size() - 1);
    const auto below = static_cast<size_t>(place);
    const size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (place - static_cast<double>(below)) * (values[above] - values[below]);
}

double median(const std::vector<double> & values) { return quantile(values, 0.5); }

interval interval_of_median(const std::vector<double> & values) {
    constexpr int resamplings = 10000;
    if (values.size() < 3) return {nothing, nothing};
    std::mt19937 random(1);
    std::vector<double> medians, drawn(values.size());
    medians.reserve(resamplings);
    for (int i = 0; i < resamplings; i++) {
        // Not uniform_int_distribution: what it draws differs between libraries.
        for (double & value : drawn) value = values[random() % values.size()];
        medians.push_back(median(drawn));
    }
    return {quantile(medians, 0.025), quantile(medians, 0.975)};
}

double spread(const std::vector<double> & values) {
    const double middle = median(values);
    return values.empty() || middle == 0 ? nothing : (quantile(values, 0.75) - quantile(values, 0.25)) / 2 / std::abs(middle);
}

} // namespace alloy::tool
