// alloy metrics: the counters of every running process on a loopback port, for Prometheus.
#include "metrics.h"

#include "child.h"
#include "commands.h"
#include "counter_view.h"
#include "loopback_http.h"

#include "base/os.h"

#include <cstdio>
#include <cstring>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

std::string label_value(const std::string & text) {
    std::string safe;
    for (const char c : text) {
        if (c == '\\' || c == '"') safe += '\\';
        safe += c;
    }
    return safe;
}

std::string labels(const counter_block & block, const std::string & more = {}) {
    return fmt::format("{{process=\"{}\",program=\"{}\"{}}}", block.process, label_value(block.program), more);
}

// What is held now goes up and down: bytes, but for the counters that say otherwise in their unit.
bool is_gauge(const counter_info & info) { return std::strcmp(info.unit, "bytes") == 0; }

std::string family(const std::string & name, const char * kind, const char * help) {
    return fmt::format("# HELP {0} {1}\n# TYPE {0} {2}\n", name, help, kind);
}

http_answer answer(const std::string & path) {
    if (path != "/metrics") return {404, "the counters are at /metrics\n"};
    std::vector<std::string> complaints; // about foreign files: `alloy status` tells them
    return {200, prometheus_text(read_counter_files(os::runtime_directory(), complaints))};
}

} // namespace

std::string prometheus_text(const std::vector<counter_file> & files) {
    std::string text = family("alloy:processes", "gauge", "processes that use the plugin now") +
                       fmt::format("alloy:processes {}\n", files.size());
    for (int i = 0; i < num_counters; i++) {
        const counter_info & info = info_of(static_cast<counter>(i));
        const std::string name = fmt::format("alloy:{}{}", info.name, is_gauge(info) ? "" : "_total");
        text += family(name, is_gauge(info) ? "gauge" : "counter", info.help);
        for (const counter_file & file : files) {
            if (i < known_counters(*file.block))
                text += fmt::format("{}{} {}\n", name, labels(*file.block), value(*file.block, static_cast<counter>(i)));
        }
    }
    text += family("alloy:delegated_op_nodes_total", "counter", "nodes run by the host's CPU backend, by operation");
    for (const counter_file & file : files) {
        for (const op_count & op : delegated_ops(*file.block))
            text += fmt::format("alloy:delegated_op_nodes_total{} {}\n",
                                labels(*file.block, fmt::format(",op=\"{}\"", label_value(op.name))), op.nodes);
    }
    text += family("alloy:start_time_seconds", "gauge", "when the process loaded the plugin, seconds since 1970");
    for (const counter_file & file : files)
        text += fmt::format("alloy:start_time_seconds{} {}\n", labels(*file.block), file.block->started);
    return text;
}

int metrics(const metrics_options & options) {
    keep_interrupts();
    std::string complaint;
    const bool is_good = serve_loopback(
        options.port, answer, [](int port) { fmt::print(stderr, "alloy metrics: http://127.0.0.1:{}/metrics\n", port); },
        complaint);
    if (is_good) return exit_good;
    fmt::print(stderr, "alloy metrics: {}\n", complaint);
    return exit_usage;
}

} // namespace alloy::tool
