// What `alloy doctor` found, and its two ways to print it.
#pragma once
#include "host.h"
#include "host_probe.h"
#include "knobs.h"
#include "machine.h"
#include "verdict.h"

#include <string>
#include <vector>

namespace alloy::tool {

struct diagnosis {
    std::string plugin;
    std::string plugin_version;
    std::string plugin_complaint; // empty when the file was found
    std::string backend_path;     // GGML_BACKEND_PATH of the user's own environment
    struct examined {
        llama_host target;
        probe_result probe;
        verdict result;
    };
    std::vector<examined> hosts;
    std::vector<std::string> complaints; // names that lead to no host
    machine here;
    std::vector<knob> knobs;
    bool is_good = false;
};

std::string report_text(const diagnosis & found);
std::string report_json(const diagnosis & found);

} // namespace alloy::tool
