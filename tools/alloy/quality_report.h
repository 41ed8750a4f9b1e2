// What `alloy quality` found, as it is saved: JSON throughout, since most of it is passed on as it is.
#pragma once
#include "perplexity_output.h"

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace alloy::tool {

nlohmann::ordered_json to_json(const divergence & d);
divergence divergence_from(const nlohmann::ordered_json & saved);

// Limits over the floor that a mode must keep to call itself what it does; NaN: none.
struct quality_gate {
    const char * mode;
    double kld, kld_99, same_top, ppl; // at most, at most, at least (percent), at most (percent, either way)
    const char * reference;            // mode of stock whose mean KLD over the floor is a limit too, times `share`; empty: none
    double share;
};
bool evicts(const nlohmann::ordered_json & settings);                    // do they leave cells out of the cache
quality_gate gate_of(const std::string & mode, bool leaves_out = false); // for shares ("0.30") that of `tiny`

enum class gate_result { pass, unsure, fail }; // unsure: beyond the limit by less than two standard errors
const char * name_of(gate_result result);

// PPL in percent over stock's own. The host's ratio has the rounding of its base file in it: it is not used, but its error is,
// without the part that stock has against itself.
measured ppl_change(const divergence & mode, const divergence & floor, double base_ppl);

// Adds "change" (what ppl_change says) and "gates" to each of report["modes"], and what changed against stock to probes and
// greedy texts.
void judge_modes(nlohmann::ordered_json & report);

std::string quality_table(const nlohmann::ordered_json & report);
std::string quality_csv(const nlohmann::ordered_json & report);
std::string quality_page(const nlohmann::ordered_json & report);

} // namespace alloy::tool
