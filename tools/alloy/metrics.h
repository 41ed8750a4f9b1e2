// The counters of running processes as Prometheus text.
#pragma once
#include "counter_files.h"

#include <string>
#include <vector>

namespace alloy::tool {

// Names as llama-server's: "alloy:tokens_total", "alloy:kv_live_bytes"; labels process and program.
std::string prometheus_text(const std::vector<counter_file> & files);

} // namespace alloy::tool
