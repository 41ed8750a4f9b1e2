// Counters of this process, published in a small mapped file so that `alloy status` can read them while the host runs.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

namespace alloy {

enum class counter : int {
#define ALLOY_COUNTER(name, unit, help) name,
#include "base/counters.inc"
#undef ALLOY_COUNTER
    count,
};
inline constexpr int num_counters = static_cast<int>(counter::count);
inline constexpr int kv_map_layers = 256, kv_map_heads = 128; // beyond, heads are not shown
inline constexpr int num_host_ops = 128; // delegated nodes are also counted by the host's op number, which is below this

struct counter_info {
    const char * name;
    const char * unit;
    const char * help;
};
const counter_info & info_of(counter which);

// The bytes of the file. A reader checks magic and version, then reads what it wants at any time.
struct counter_block {
    char magic[8];                 // "alloyctr"
    uint32_t version;              // of this struct
    uint32_t num_counters;
    int32_t process;
    int32_t reserved;
    uint64_t started;              // seconds since 1970
    char program[64];
    char host[32];                 // ggml version
    char isa[96];
    std::atomic<uint64_t> values[64];
    std::atomic<uint64_t> delegated[num_host_ops];
    char op_names[num_host_ops][24];
    // What heads are sealed as: the number of the codec plus 1, of keys in the low half, of values in the high half; 0: rows.
    std::atomic<uint8_t> kv_codecs[kv_map_layers][kv_map_heads];
};
inline constexpr uint32_t counter_version = 2;
static_assert(num_counters <= 64);

counter_block & counters();
inline void count(counter which, uint64_t by = 1) { counters().values[static_cast<int>(which)].fetch_add(by, std::memory_order_relaxed); }
inline void uncount(counter which, uint64_t by) { counters().values[static_cast<int>(which)].fetch_sub(by, std::memory_order_relaxed); }
inline uint64_t value_of(counter which) { return counters().values[static_cast<int>(which)].load(std::memory_order_relaxed); }
inline void count_delegated(int host_op, uint64_t by = 1) {
    counters().delegated[host_op & (num_host_ops - 1)].fetch_add(by, std::memory_order_relaxed);
}

// Moves the counters into a mapped file. Without it, or when the file cannot be made, they stay private to the process.
void publish_counters(const std::string & host_version, const std::string & isa);

} // namespace alloy
