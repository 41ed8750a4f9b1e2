// The two symbols that the host finds in the shared library.
#include "plugin/plugin.h"

#define ALLOY_EXPORT extern "C" [[gnu::visibility("default")]]

// Asked first: 0 keeps the plugin out of this process.
ALLOY_EXPORT int ggml_backend_score() { return alloy::plugin::handshake(__builtin_return_address(0)) ? 1 : 0; }

// May be called many times and always answers with the same registry.
ALLOY_EXPORT alloy::host::registry * ggml_backend_init() {
    if (!alloy::plugin::handshake(__builtin_return_address(0))) return nullptr;
    alloy::plugin::the_buffer_type(); // so that buffers can be told ours from the first question on
    return alloy::plugin::the_registry();
}
