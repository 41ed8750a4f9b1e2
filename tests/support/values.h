// Inputs that kernels meet: ordinary numbers and those at the edges of f32. The seed is printed once; ALLOY_TEST_SEED sets it.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

namespace alloy::test {

inline uint64_t seed() {
    static const uint64_t value = [] {
        const char * text = std::getenv("ALLOY_TEST_SEED");
        const uint64_t chosen = text ? std::strtoull(text, nullptr, 0) : 20240521;
        std::printf("ALLOY_TEST_SEED=%llu\n", static_cast<unsigned long long>(chosen));
        return chosen;
    }();
    return value;
}

enum class values { normal, zeros, one_hot, huge, denormal, alternating, large_negative, wide, count };

inline const char * values_name(values kind) {
    constexpr const char * names[] = {"normal", "zeros", "one_hot", "huge", "denormal", "alternating", "large_negative", "wide"};
    return names[static_cast<int>(kind)];
}

// One row of `n` numbers. `salt` tells rows of one test apart.
inline void fill(values kind, float * row, int64_t n, uint64_t salt) {
    std::mt19937_64 engine(seed() * 0x9E3779B97F4A7C15u + salt);
    std::normal_distribution<float> normal(0, 1);
    const int64_t hot = static_cast<int64_t>(engine() % static_cast<uint64_t>(n));
    for (int64_t i = 0; i < n; i++) {
        const float x = normal(engine);
        switch (kind) {
            case values::normal: row[i] = x; break;
            case values::zeros: row[i] = 0; break;
            case values::one_hot: row[i] = i == hot ? 37.5f : 0.0f; break;
            case values::huge: row[i] = x * 1e18f; break;
            case values::denormal: row[i] = x * 1e-41f; break;
            case values::alternating: row[i] = i % 2 ? -3.0f : 3.0f; break;
            case values::large_negative: row[i] = -100.0f * (x < 0 ? -x : x); break;
            case values::wide: row[i] = x * static_cast<float>(1 << (engine() % 8)); break;
            case values::count: break;
        }
    }
}

} // namespace alloy::test
