#include "base/isa.h"

#include <atomic>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace alloy {
namespace {

constexpr const char * names[] = {
#define ALLOY_ISA(token) #token,
#include "base/isa.inc"
#undef ALLOY_ISA
};

constexpr uint32_t num_isas = static_cast<uint32_t>(isa::count);

// What `token` includes besides itself; "limited to avx512" must keep avx2 and drop avx512_vnni.
constexpr isa_set closure(isa token) {
    switch (token) {
        case isa::avx2: return isa_bit(token);
        case isa::avx2_vnni: return isa_bit(token) | closure(isa::avx2);
        case isa::avx512: return isa_bit(token) | closure(isa::avx2);
        case isa::avx512_vnni: return isa_bit(token) | closure(isa::avx512);
        case isa::avx512_bf16: return isa_bit(token) | closure(isa::avx512_vnni);
        case isa::neon: return isa_bit(token);
        case isa::neon_dotprod: return isa_bit(token) | closure(isa::neon);
        case isa::neon_i8mm: return isa_bit(token) | closure(isa::neon_dotprod);
        case isa::count: break;
    }
    return 0;
}

isa_set detect() {
    isa_set set = 0;
#if defined(__x86_64__)
    // __builtin_cpu_supports also asks the operating system (XGETBV) whether the wide registers are saved.
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
        // Every CPU with AVX2 has F16C; neither gcc 12 nor clang 14 can be asked for it.
        set |= isa_bit(isa::avx2);
        uint32_t eax = 7, ebx = 0, ecx = 1, edx = 0; // leaf 7, sub-leaf 1: EAX bit 4 = AVX-VNNI
        __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
        if (eax & (1u << 4)) set |= isa_bit(isa::avx2_vnni);
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd")) {
            set |= isa_bit(isa::avx512);
            if (__builtin_cpu_supports("avx512vnni")) {
                set |= isa_bit(isa::avx512_vnni);
                if (__builtin_cpu_supports("avx512bf16")) set |= isa_bit(isa::avx512_bf16);
            }
        }
    }
#elif defined(__aarch64__) && defined(__linux__)
    set |= isa_bit(isa::neon);
    const unsigned long hwcap = getauxval(AT_HWCAP), hwcap2 = getauxval(AT_HWCAP2);
    if ((hwcap & HWCAP_ASIMDDP) && (hwcap & HWCAP_ASIMDHP)) {
        set |= isa_bit(isa::neon_dotprod);
        if (hwcap2 & HWCAP2_I8MM) set |= isa_bit(isa::neon_i8mm);
    }
#endif
    return set;
}

std::atomic<isa_set> allowed_set{0};
std::atomic<bool> allowed_known{false};

} // namespace

const char * isa_name(isa token) { return token < isa::count ? names[static_cast<uint32_t>(token)] : "?"; }

isa_set isa_of_cpu() {
    static const isa_set set = detect();
    return set;
}

bool isa_limited_to(std::string_view limit, isa_set offered, isa_set & allowed) {
    for (uint32_t i = 0; i < num_isas; i++) {
        if (limit == names[i]) {
            allowed = offered & closure(static_cast<isa>(i));
            return true;
        }
    }
    return false;
}

isa_set isa_allowed() { return allowed_known.load(std::memory_order_acquire) ? allowed_set.load() : isa_of_cpu(); }

void set_isa_allowed(isa_set allowed) {
    allowed_set.store(allowed);
    allowed_known.store(true, std::memory_order_release);
}

std::string isa_list(isa_set set) {
    std::string text;
    for (uint32_t i = 0; i < num_isas; i++) {
        if (isa_has(set, static_cast<isa>(i))) text += (text.empty() ? "" : " ") + std::string(names[i]);
    }
    return text.empty() ? "none" : text;
}

} // namespace alloy
