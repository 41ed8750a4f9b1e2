#include "counter_view.h"

#include <algorithm>
#include <ctime>

#include <fmt/format.h>

namespace alloy::tool {

uint64_t value(const counter_block & block, counter which) {
    return block.values[static_cast<int>(which)].load(std::memory_order_relaxed);
}

int known_counters(const counter_block & block) {
    return std::min(num_counters, static_cast<int>(std::min<uint32_t>(block.num_counters, 64)));
}

std::vector<op_count> delegated_ops(const counter_block & block) {
    std::vector<op_count> ops;
    for (int op = 0; op < num_host_ops; op++) {
        const uint64_t nodes = block.delegated[op].load(std::memory_order_relaxed);
        if (nodes == 0) continue;
        ops.push_back({block.op_names[op][0] != 0 ? block.op_names[op] : fmt::format("op {}", op), nodes});
    }
    std::stable_sort(ops.begin(), ops.end(), [](const op_count & a, const op_count & b) { return a.nodes > b.nodes; });
    return ops;
}

double own_share(const counter_block & block) {
    const double own = static_cast<double>(value(block, counter::kernel_steps)),
                 other = static_cast<double>(value(block, counter::delegated_nodes));
    return own + other > 0 ? own / (own + other) : -1;
}

uint64_t uptime(const counter_block & block) {
    const auto now = static_cast<uint64_t>(std::time(nullptr));
    return now - std::min(now, block.started);
}

std::string duration(uint64_t seconds) {
    const uint64_t minutes = seconds / 60, hours = minutes / 60;
    if (hours >= 24) return fmt::format("{} d {} h", hours / 24, hours % 24);
    if (hours > 0) return fmt::format("{} h {} min", hours, minutes % 60);
    return minutes > 0 ? fmt::format("{} min {} s", minutes, seconds % 60) : fmt::format("{} s", seconds);
}

std::string amount(uint64_t number, const std::string & unit) {
    if (unit == "bytes") return fmt::format("{:.1f} MiB", static_cast<double>(number) / 1048576.0);
    return fmt::format("{} {}", number, unit);
}

} // namespace alloy::tool
