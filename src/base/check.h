// Checks for programmer errors. User errors are values, never checks: no input of the host may reach an abort.
#pragma once

#ifdef ALLOY_CHECKED // debug and sanitizer presets
#include <cstdio>
#include <cstdlib>
#define ALLOY_EXPECT(condition)                                                                        \
    do {                                                                                               \
        if (!(condition)) {                                                                            \
            std::fprintf(stderr, "%s:%d: broken contract: %s\n", __FILE__, __LINE__, #condition);      \
            std::abort();                                                                              \
        }                                                                                              \
    } while (0)
#else
#define ALLOY_EXPECT(condition) static_cast<void>(0)
#endif
