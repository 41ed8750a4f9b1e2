// What a handful of timings says: medians, quartiles, and how far a median of ratios can be trusted.
#pragma once
#include <vector>

namespace alloy::tool {

double quantile(std::vector<double> values, double share); // linear between neighbours; NaN without values
double median(const std::vector<double> & values);

struct interval {
    double low = 0, high = 0;
};

// 95 % interval of the median by the percentile bootstrap: 10,000 resamplings, always the same ones. With fewer than three values
// it is not defined: NaN.
interval interval_of_median(const std::vector<double> & values);

// Half of the distance between the quartiles, as a share of the median: as many values lie closer to the median as farther away.
double spread(const std::vector<double> & values);

} // namespace alloy::tool
