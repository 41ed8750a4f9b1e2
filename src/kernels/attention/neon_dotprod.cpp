// Family attention, Advanced SIMD with SDOT, which multiplies signed bytes and so leaves P 7 bits. Registers and limits: neon.h.
#include "kernels/attention/attention.h"

#include <arm_neon.h>

namespace alloy {
namespace {

struct tile {
    static constexpr float largest_p = 127;
    static int32x4_t dot(int32x4_t sum, uint8x8_t p, int8x16_t v) { return vdotq_lane_s32(sum, v, vreinterpret_s8_u8(p), 0); }
};

} // namespace
} // namespace alloy

#include "kernels/attention/neon.h"

namespace alloy {
ALLOY_DEFINE_TILES(neon_dotprod)
#define ALLOY_CELL_TYPE(name, host, elements, bytes) ALLOY_DEFINE_CELLS(name, neon_dotprod)
#include "kernels/attention/cell_types.inc"
#undef ALLOY_CELL_TYPE
}
