// Row lengths around the lane counts of every ISA, and those of real models.
#pragma once
#include <cstdint>

namespace alloy::test {

constexpr int64_t row_lengths[] = {1, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100, 576, 640, 2048, 2049};
constexpr int64_t row_counts[] = {0, 1, 2, 5};

} // namespace alloy::test
