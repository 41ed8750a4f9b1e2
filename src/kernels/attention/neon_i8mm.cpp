// Family attention, Advanced SIMD with USDOT: as neon_dotprod, but 8 bits for P. Registers and limits: neon.h.
// Not tried: SMMLA, twice the products of SDOT; it wants pairs of rows and of cells, which generic.h does not make.
#include "kernels/attention/attention.h"

#include <arm_neon.h>

namespace alloy {
namespace {

struct tile {
    static constexpr float largest_p = 255;
    static int32x4_t dot(int32x4_t sum, uint8x8_t p, int8x16_t v) { return vsudotq_lane_s32(sum, v, p, 0); }
};

} // namespace
} // namespace alloy

#include "kernels/attention/neon.h"

namespace alloy {
ALLOY_DEFINE_TILES(neon_i8mm)
#define ALLOY_CELL_TYPE(name, host, elements, bytes) ALLOY_DEFINE_CELLS(name, neon_i8mm)
#include "kernels/attention/cell_types.inc"
#undef ALLOY_CELL_TYPE
}
