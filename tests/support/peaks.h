// What the machine can do at most: multiplications a second from registers, bytes a second from memory.
#pragma once
#include "base/isa.h"
#include "support/bench.h"

#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace alloy::test {

#if defined(__x86_64__)
constexpr int peak_steps = 2000, peak_chains = 12;

__attribute__((target("avx512f,avx512vnni"))) inline double macs_avx512_vnni() {
    __m512i acc[peak_chains] = {};
    const __m512i x = _mm512_set1_epi8(1);
    for (int i = 0; i < peak_steps; i++) {
        for (auto & a : acc) {
            a = _mm512_dpbusd_epi32(a, x, x);
            __asm__ volatile("" : "+v"(a));
        }
    }
    return 64.0 * peak_steps * peak_chains;
}
__attribute__((target("avx2"))) inline double macs_avx2() { // VPMADDUBSW + VPADDW, without widening
    __m256i acc[peak_chains] = {};
    __m256i x = _mm256_set1_epi8(1);
    for (int i = 0; i < peak_steps; i++) {
        for (auto & a : acc) {
            __asm__ volatile("" : "+x"(x)); // else the product leaves the loop
            a = _mm256_add_epi16(a, _mm256_maddubs_epi16(x, x));
            __asm__ volatile("" : "+x"(a));
        }
    }
    return 32.0 * peak_steps * peak_chains;
}
__attribute__((target("avx512f"))) inline double macs_f32_avx512() {
    __m512 acc[peak_chains] = {};
    const __m512 x = _mm512_set1_ps(0.5f);
    for (int i = 0; i < peak_steps; i++) {
        for (auto & a : acc) {
            a = _mm512_fmadd_ps(x, x, a);
            __asm__ volatile("" : "+v"(a));
        }
    }
    return 16.0 * peak_steps * peak_chains;
}
__attribute__((target("avx2,fma"))) inline double macs_f32_avx2() {
    __m256 acc[peak_chains] = {};
    const __m256 x = _mm256_set1_ps(0.5f);
    for (int i = 0; i < peak_steps; i++) {
        for (auto & a : acc) {
            a = _mm256_fmadd_ps(x, x, a);
            __asm__ volatile("" : "+x"(a));
        }
    }
    return 8.0 * peak_steps * peak_chains;
}

inline double rate_of(double (*macs)()) {
    const double count = macs();
    return count / alone([&] { macs(); }).ours;
}

inline bool is_512_bit(isa token) { return token == isa::avx512 || token == isa::avx512_vnni || token == isa::avx512_bf16; }
inline double peak_f32(isa token) { return is_512_bit(token) ? rate_of(macs_f32_avx512) : rate_of(macs_f32_avx2); }
inline double peak_int8(isa token) { return is_512_bit(token) ? rate_of(macs_avx512_vnni) : rate_of(macs_avx2); }
#else
inline double peak_f32(isa) { return 0; } // not written yet
inline double peak_int8(isa) { return 0; }
#endif

inline uint64_t read_all(const uint8_t * p, size_t bytes) {
    uint64_t a[8] = {};
    for (size_t i = 0; i < bytes; i += 64) {
        for (size_t j = 0; j < 8; j++) {
            uint64_t x;
            std::memcpy(&x, p + i + 8 * j, 8);
            a[j] ^= x;
        }
    }
    return a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
}

} // namespace alloy::test
