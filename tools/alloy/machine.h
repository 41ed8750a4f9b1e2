// What the plugin finds on this machine.
#pragma once
#include <cstddef>
#include <string>

namespace alloy::tool {

struct machine {
    std::string isa_found;
    std::string isa_allowed; // GGML_ALLOY_ISA applied; "none" when nothing is left
    std::string packed_weights; // types that a matmul kernel within isa_allowed reads; others stay in the host's own layout
    int cores = 0;           // usable: affinity and cgroup quota
    int cpus = 0;            // online, hyper-threads counted
    size_t total_memory = 0; // bytes
    size_t available_memory = 0;
    std::string huge_pages; // transparent_hugepage/enabled: always, madvise, never; "unknown"
};

machine look_at_machine(); // after read_knobs()

} // namespace alloy::tool
