// Medians, quartiles and intervals that were worked out by hand.
#include "statistics.h"

#include <cmath>

#include <gtest/gtest.h>

namespace alloy::tool {
namespace {

TEST(statistics, quantiles) {
    EXPECT_DOUBLE_EQ(median({3, 1, 2}), 2);
    EXPECT_DOUBLE_EQ(median({4, 1, 2, 3}), 2.5);
    EXPECT_DOUBLE_EQ(quantile({10, 20, 30, 40, 50}, 0.25), 20);
    EXPECT_DOUBLE_EQ(quantile({10, 20}, 0.25), 12.5);
    EXPECT_DOUBLE_EQ(quantile({7}, 0.9), 7);
    EXPECT_TRUE(std::isnan(median({})));
}

TEST(statistics, spread_is_half_the_distance_of_the_quartiles) {
    EXPECT_DOUBLE_EQ(spread({10, 20, 30, 40, 50}), (40.0 - 20.0) / 2 / 30);
    EXPECT_DOUBLE_EQ(spread({5, 5, 5}), 0);
    EXPECT_TRUE(std::isnan(spread({})));
}

TEST(statistics, intervals) {
    EXPECT_TRUE(std::isnan(interval_of_median({1, 2}).low)); // too few
    const interval same = interval_of_median({2, 2, 2, 2});
    EXPECT_DOUBLE_EQ(same.low, 2);
    EXPECT_DOUBLE_EQ(same.high, 2);
    // Of three values the median of a resampling is the smallest with probability 7/27, so the interval is their range.
    const interval three = interval_of_median({1, 2, 3});
    EXPECT_DOUBLE_EQ(three.low, 1);
    EXPECT_DOUBLE_EQ(three.high, 3);
    // 101 values 0 .. 100: order statistics of about 50 -+ 1.96 * sqrt(101) / 2.
    std::vector<double> many;
    for (int i = 0; i <= 100; i++) many.push_back(i);
    const interval wide = interval_of_median(many);
    EXPECT_NEAR(wide.low, 40, 2);
    EXPECT_NEAR(wide.high, 60, 2);
    EXPECT_EQ(interval_of_median(many).low, wide.low); // repeatable
}

} // namespace
} // namespace alloy::tool
