// What the fake llama-bench, llama-perplexity and llama-server share.
#pragma once
#include "base/counters.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

extern "C" const char * ggml_version(); // also keeps libggml among the needed libraries
extern "C" size_t ggml_backend_dev_count();

namespace fake {

inline std::string variable(const char * name) {
    const char * value = std::getenv(name);
    return value != nullptr ? value : "";
}

inline std::string argument(int argc, char ** argv, const char * name, const char * otherwise) {
    for (int i = 1; i + 1 < argc; i++) {
        if (std::strcmp(argv[i], name) == 0) return argv[i + 1];
    }
    return otherwise;
}

// A host with its backends linked in reads the variable only when asked for devices.
inline bool has_plugin(int argc, char ** argv) {
#ifdef FAKE_CPU_LINKED_IN
    if (argument(argc, argv, "-dev", "") != "ALLOY0") return false;
#else
    static_cast<void>(argc), static_cast<void>(argv);
#endif
    return ggml_backend_dev_count() == 0 && !variable("GGML_BACKEND_PATH").empty();
}

// "--version" is all that was asked for.
inline bool told_version(int argc, char ** argv) {
    const bool is_asked = argc == 2 && std::strcmp(argv[1], "--version") == 0;
    if (is_asked) std::fputs("version: 7 (abc)\nbuilt with a compiler\n", stderr);
    return is_asked;
}

inline void count_some_work() {
    alloy::publish_counters(ggml_version(), "avx2");
    alloy::count(alloy::counter::graphs, 3);
    alloy::count(alloy::counter::kernel_steps, 30);
    alloy::count(alloy::counter::kv_sealed_pages, 7);
}

} // namespace fake
