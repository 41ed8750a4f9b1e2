#include "knobs.h"

#include <cstdlib>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

std::string quoted_values(const option_info & info) {
    if (std::string(info.kind) != "choice" && std::string(info.kind) != "choice_or_share")
        return fmt::format("{} in `{}`", std::string(info.kind) == "mebibytes" ? "MiB" : "a number", info.values);
    std::string text = "`"; // a bar would end the table's cell
    for (const char * c = info.values; *c != 0; c++) text += *c == '|' ? std::string("`, `") : std::string(1, *c);
    return text + "`";
}

} // namespace

std::vector<knob> read_knobs() {
    std::vector<knob> knobs;
    for (int i = 0; i < static_cast<int>(option::count); i++) {
        knob k{&info_of(static_cast<option>(i)), {}, false, {}};
        const char * set = std::getenv(k.info->variable);
        k.is_set = set != nullptr && *set != 0;
        k.value = k.is_set ? set : k.info->standard;
        knobs.push_back(k);
        unsetenv(k.info->variable);
    }
    // The plugin's own parser judges, and it stops at the first wrong value: so it sees one knob at a time.
    for (knob & k : knobs) {
        if (!k.is_set) continue;
        setenv(k.info->variable, k.value.c_str(), 1);
        read_options(k.complaint);
        unsetenv(k.info->variable);
    }
    for (const knob & k : knobs) {
        if (k.is_set) setenv(k.info->variable, k.value.c_str(), 1);
    }
    std::string first;
    read_options(first);
    return knobs;
}

std::string knobs_markdown() {
    std::string text = "<!-- Made by `alloy knobs --markdown > docs/knobs.md` from src/base/options.inc. -->\n"
                       "# Knobs\n\n"
                       "Environment variables, read once when the host loads the plugin. A wrong value is reported in one line "
                       "that names the knob, the value\n"
                       "and what was expected; the host then runs without the plugin. `alloy doctor` shows what is set.\n\n"
                       "| variable | values | default | meaning |\n"
                       "|---|---|---|---|\n";
    for (int i = 0; i < static_cast<int>(option::count); i++) {
        const option_info & info = info_of(static_cast<option>(i));
        text += fmt::format("| `{}` | {} | `{}` | {} |\n", info.variable, quoted_values(info), info.standard, info.help);
    }
    return text;
}

std::string knobs_text(const std::vector<knob> & knobs) {
    std::string text;
    for (const knob & k : knobs) {
        const char * mark = !k.complaint.empty() ? "!" : k.is_set ? "*" : " ";
        text += fmt::format("{} {:<20} {:<12} {}\n", mark, k.info->variable, k.value, k.info->help);
        if (!k.complaint.empty()) text += fmt::format("    wrong: {}\n", k.complaint);
    }
    return text;
}

} // namespace alloy::tool
