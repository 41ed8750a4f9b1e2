// What a counter file says, in the words that status, metrics and top share.
#pragma once
#include "base/counters.h"

#include <cstdint>
#include <string>
#include <vector>

namespace alloy::tool {

struct op_count {
    std::string name;
    uint64_t nodes;
};

uint64_t value(const counter_block & block, counter which);
int known_counters(
    const counter_block & block); // an older plugin has fewer; those of a newer one that we do not know stay unseen
std::vector<op_count> delegated_ops(const counter_block & block); // most nodes first
double own_share(
    const counter_block & block); // of the plugin's kernels among all the work that graphs asked for; -1 before the first graph
uint64_t uptime(const counter_block & block); // seconds
std::string duration(uint64_t seconds);
std::string amount(uint64_t number, const std::string & unit); // "3.0 MiB", "12 steps"

} // namespace alloy::tool
