// The intrinsics for AVX-512, without the warnings that gcc 12 has about its own _mm512_undefined_ps wherever it is inlined (gcc bug 105593).
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
