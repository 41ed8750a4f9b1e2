// The knobs as this process sees them; the list itself is base/options.inc.
#pragma once
#include "base/options.h"

#include <string>
#include <vector>

namespace alloy::tool {

struct knob {
    const option_info * info;
    std::string value; // of the environment, else the default
    bool is_set = false;
    std::string complaint; // empty when the value is right
};

std::vector<knob> read_knobs();
std::string knobs_markdown(); // docs/knobs.md
std::string knobs_text(const std::vector<knob> & knobs);

} // namespace alloy::tool
