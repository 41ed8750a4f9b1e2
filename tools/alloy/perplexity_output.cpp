#include "perplexity_output.h"

#include <cmath>
#include <regex>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

// "<label> : 1.5 ± 0.2 %"; the error is optional. Returns false when the label is not there or no finite number follows.
bool find(const std::string & text, const std::string & label, measured & found) {
    const size_t at = text.find(label);
    if (at == std::string::npos) return false;
    const std::string line = text.substr(at + label.size(), text.find('\n', at) - at - label.size());
    static const std::regex numbers(R"(^\s*:?\s*(-?[\d.]+)\s*%?(?:\s*(?:±|\+/-)\s*([\d.]+))?)");
    std::smatch match;
    if (!std::regex_search(line, match, numbers)) return false;
    found.value = std::stod(match[1]);
    found.error = match[2].matched ? std::stod(match[2]) : 0;
    return std::isfinite(found.value);
}

} // namespace

bool parse_perplexity(const std::string & text, double & ppl, std::string & complaint) {
    measured found;
    if (!find(text, "Final estimate: PPL =", found)) {
        complaint = "llama-perplexity told no 'Final estimate: PPL'";
        return false;
    }
    ppl = found.value;
    return true;
}

bool parse_divergence(const std::string & text, divergence & found, std::string & complaint) {
    measured kld_99, kld_max;
    struct wanted {
        const char * label;
        measured * into;
    };
    for (const wanted & w :
         {wanted{"Mean PPL(Q)  ", &found.ppl}, wanted{"Mean PPL(Q)/PPL(base)", &found.ratio}, wanted{"Mean    KLD", &found.kld},
          wanted{"Maximum KLD", &kld_max}, wanted{"99.0%   KLD", &kld_99}, wanted{"Same top p:", &found.same_top}}) {
        if (find(text, w.label, *w.into)) continue;
        complaint = fmt::format("llama-perplexity told no '{}'", w.label);
        return false;
    }
    found.kld_99 = kld_99.value;
    found.kld_max = kld_max.value;
    return true;
}

uint64_t base_file_bytes(uint64_t vocabulary, uint64_t context, uint64_t chunks) {
    const uint64_t row = 2 * (2 * ((vocabulary + 1) / 2) + 4), rows = context - 1 - context / 2;
    return 20 + 4 * context * chunks + chunks * rows * row;
}

} // namespace alloy::tool
