// The knobs, read once from the environment.
#pragma once
#include <cstdint>
#include <string>

namespace alloy {

enum class option : int {
#define ALLOY_OPTION(name, variable, kind, standard, values, help) name,
#include "base/options.inc"
#undef ALLOY_OPTION
    count,
};

struct option_info {
    const char * name;
    const char * variable;
    const char * kind;
    const char * standard;
    const char * values;
    const char * help;
};
const option_info & info_of(option which);

// Reads every knob. Returns false and one line that names knob, value and accepted values at the first wrong one.
bool read_options(std::string & complaint);

const std::string & text_of(option which);
uint64_t number_of(option which); // count, mebibytes, flag
double share_of(option which);    // choice_or_share; 0 for a choice
inline bool is_on(option which) { return text_of(which) == "on" || text_of(which) == "1"; }

} // namespace alloy
