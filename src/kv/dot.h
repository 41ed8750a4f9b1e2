// A scalar product in eight parts, which compilers turn into vectors.
#pragma once
#include <cstdint>

namespace alloy::kv {

// n: a multiple of 8.
inline float dot(const float * a, const float * b, int64_t n) {
    float sum[8] = {};
    for (int64_t i = 0; i < n; i += 8) {
        for (int j = 0; j < 8; j++) sum[j] += a[i + j] * b[i + j];
    }
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

} // namespace alloy::kv
