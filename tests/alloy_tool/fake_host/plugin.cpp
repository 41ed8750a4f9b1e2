// Stands for libggml-alloy.so before the fake host: accepted unless FAKE_PLUGIN_REFUSES is set. Its version: "ggml-alloy 9.9.9
// (CPU)".
#include <cstdio>
#include <cstdlib>

#define FAKE_API extern "C" [[gnu::visibility("default")]]

FAKE_API const char * fake_description() { return "ggml-alloy 9.9.9 (CPU)"; }
FAKE_API void * ggml_backend_init() { return nullptr; }
FAKE_API int ggml_backend_score() {
    const char * off = std::getenv("GGML_ALLOY");
    if (off != nullptr && off[0] == 'o' && off[1] == 'f') return 0;
    if (std::getenv("FAKE_PLUGIN_REFUSES") == nullptr) return 1;
    std::fprintf(stderr,
                 "ggml-alloy: host has ggml 0.0.1-fake, this plugin (9.9.9) is made for ggml 9.9; the host goes on without us\n");
    return 0;
}
