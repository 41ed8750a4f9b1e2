// Instruction sets as a bit set: what the CPU has, what the user allows, what a kernel needs.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace alloy {

// One bit for each token of isa.inc. A kernel needs one bit; a machine offers many.
enum class isa : uint32_t {
#define ALLOY_ISA(token) token,
#include "base/isa.inc"
#undef ALLOY_ISA
    count,
};

using isa_set = uint32_t;

constexpr isa_set isa_bit(isa token) { return 1u << static_cast<uint32_t>(token); }
constexpr bool isa_has(isa_set set, isa token) { return (set & isa_bit(token)) != 0; }

const char * isa_name(isa token);

// Everything that this CPU and operating system can run.
isa_set isa_of_cpu();

// The subset of `offered` up to and including `limit` ("avx2", "neon_dotprod", ...), for GGML_ALLOY_ISA.
// Returns false when `limit` is no token.
bool isa_limited_to(std::string_view limit, isa_set offered, isa_set & allowed);

// What kernels may be chosen in this process: isa_of_cpu() limited by GGML_ALLOY_ISA. Set once at start-up.
isa_set isa_allowed();
void set_isa_allowed(isa_set allowed);

// "avx2 avx512", for logs.
std::string isa_list(isa_set set);

} // namespace alloy
