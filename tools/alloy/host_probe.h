// Loads a host's libraries and the plugin in a child process, to see what really happens. A crash or an endless loop there is a
// result.
#pragma once
#include "host.h"

#include <string>
#include <vector>

namespace alloy::tool {

struct probed_device {
    std::string name;
    std::string description;
    int type = 0; // host::device_type
};

struct probe_result {
    std::string version;                // ggml_version(); empty when unknown
    std::vector<probed_device> devices; // in the host's order
    std::vector<std::string> log;       // what host and plugin printed
    std::string failure;                // crashed, timed out, library not loadable; empty when the probe came to its end

    const probed_device * alloy() const;
};

constexpr int probe_timeout_ms = 5000;

// No model is loaded and nothing is computed. `plugin` may be empty: then only the host is looked at.
probe_result probe_host(const llama_host & target, const std::string & plugin, int timeout_ms = probe_timeout_ms);

} // namespace alloy::tool
