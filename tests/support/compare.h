// Comparison of a row with an fp64 oracle that brings its own bound for each element.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace alloy::test {

constexpr double eps = 0x1p-24; // half a unit in the last place of an f32 in [1, 2)

struct expected {
    double value;
    double bound; // of |result - value|
};

inline testing::AssertionResult within(const float * got, const std::vector<expected> & want) {
    for (size_t i = 0; i < want.size(); i++) {
        const double error = std::fabs(static_cast<double>(got[i]) - want[i].value);
        if (!(error <= want[i].bound)) { // also when it is NaN
            return testing::AssertionFailure() << "element " << i << " is " << got[i] << ", expected " << want[i].value
                                               << ", off by " << error << ", allowed " << want[i].bound;
        }
    }
    return testing::AssertionSuccess();
}

} // namespace alloy::test
