// Would a host use the plugin, and why.
#pragma once
#include "host.h"
#include "host_probe.h"
#include "knobs.h"

#include <string>

namespace alloy::tool {

enum class outcome {
    used,            // every layer goes to ALLOY0 without a flag
    used_when_named, // with -dev ALLOY0, which `alloy run` adds
    stands_aside,    // another GPU is preferred; -dev ALLOY0 overrides
    other_devices,   // LLAMA_ARG_DEVICE chooses others
    off,             // GGML_ALLOY=off
    wrong_knob,
    refused,     // the plugin or the host said no
    unsupported, // fully static
    failed,      // the host itself does not load
};

struct verdict {
    outcome what;
    std::string reason; // one line
    bool is_good() const { return what == outcome::used || what == outcome::used_when_named; }
};
const char * name_of(outcome what);

verdict judge(const llama_host & target, const probe_result & probe, const std::string & plugin, const std::vector<knob> & knobs);

} // namespace alloy::tool
