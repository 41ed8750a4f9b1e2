#include "base/options.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace alloy {
namespace {

constexpr int num_options = static_cast<int>(option::count);

constexpr option_info table[] = {
#define ALLOY_OPTION(name, variable, kind, standard, values, help) {#name, variable, #kind, standard, values, help},
#include "base/options.inc"
#undef ALLOY_OPTION
};

struct option_values {
    std::array<std::string, num_options> texts;
    std::array<uint64_t, num_options> numbers{};
    option_values() {
        for (int i = 0; i < num_options; i++) {
            texts[i] = table[i].standard;
            numbers[i] = std::strtoull(table[i].standard, nullptr, 10);
        }
    }
};

option_values & values() {
    static option_values current;
    return current;
}

bool is_choice(std::string_view value, std::string_view choices) {
    while (!choices.empty()) {
        const size_t bar = choices.find('|');
        if (value == choices.substr(0, bar)) return true;
        choices = bar == std::string_view::npos ? std::string_view{} : choices.substr(bar + 1);
    }
    return false;
}

// One of the choices, or a number like 0.30 within the range "low-high" that comes last.
bool is_choice_or_share(const std::string & value, std::string_view choices) {
    const size_t last = choices.rfind('|');
    if (is_choice(value, choices.substr(0, last))) return true;
    if (value.size() < 3 || value.size() > 8 || value.compare(0, 2, "0.") != 0 || value.find_first_not_of("0123456789", 2) != std::string::npos) return false;
    const std::string range(choices.substr(last + 1));
    const double share = std::strtod(value.c_str(), nullptr), low = std::strtod(range.c_str(), nullptr);
    return share >= low && share <= std::strtod(range.c_str() + range.find('-') + 1, nullptr);
}

// A whole number within "low-high"; nothing else around it.
bool is_number(const std::string & value, const char * range, uint64_t & number) {
    if (value.empty() || value.size() > 18 || value.find_first_not_of("0123456789") != std::string::npos) return false;
    number = std::strtoull(value.c_str(), nullptr, 10);
    const uint64_t low = std::strtoull(range, nullptr, 10), high = std::strtoull(std::strchr(range, '-') + 1, nullptr, 10);
    return number >= low && number <= high;
}

} // namespace

const option_info & info_of(option which) { return table[static_cast<int>(which)]; }

bool read_options(std::string & complaint) {
    option_values read;
    for (int i = 0; i < num_options; i++) {
        const char * set = std::getenv(table[i].variable);
        if (set == nullptr || *set == 0) continue;
        const bool choice = std::strcmp(table[i].kind, "choice") == 0, or_share = std::strcmp(table[i].kind, "choice_or_share") == 0;
        const bool good = choice      ? is_choice(set, table[i].values)
                          : or_share ? is_choice_or_share(set, table[i].values)
                                     : is_number(set, table[i].values, read.numbers[i]);
        if (!good) {
            complaint = std::string(table[i].variable) + ": got '" + std::string(set).substr(0, 64) + "', expected " +
                        (choice || or_share ? "one of " : "a whole number in ") + table[i].values;
            return false;
        }
        read.texts[i] = set;
    }
    values() = read;
    return true;
}

const std::string & text_of(option which) { return values().texts[static_cast<int>(which)]; }
double share_of(option which) {
    const std::string & text = text_of(which);
    return text[0] == '0' ? std::strtod(text.c_str(), nullptr) : 0;
}
uint64_t number_of(option which) { return values().numbers[static_cast<int>(which)]; }

} // namespace alloy
