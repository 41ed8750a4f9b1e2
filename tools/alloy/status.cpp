// alloy status: what the plugin does in each running process.
#include "commands.h"
#include "counter_files.h"
#include "counter_view.h"

#include "base/os.h"
#include "formats/kv_codec.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <thread>
#include <utility>
#include <vector>

#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace alloy::tool {
namespace {

using json = nlohmann::ordered_json;

std::string process_text(const counter_block & block) {
    constexpr size_t most_ops = 8;
    std::string text = fmt::format("{} (process {}), up {}, host ggml {}, {}\n", block.program, block.process,
                                   duration(uptime(block)), block.host, block.isa);
    for (int i = 0; i < known_counters(block); i++) {
        const counter_info & info = info_of(static_cast<counter>(i));
        text += fmt::format("  {:<18} {:>18}  {}\n", info.name,
                            amount(block.values[i].load(std::memory_order_relaxed), info.unit), info.help);
    }
    const double share = own_share(block);
    text += fmt::format("  {:<18} {:>18}  {}\n", "own share", share < 0 ? "-" : fmt::format("{:.1f} %", 100 * share),
                        "kernel_steps of kernel_steps + delegated_nodes");
    const std::vector<op_count> ops = delegated_ops(block);
    uint64_t rest = 0;
    for (size_t i = 0; i < ops.size(); i++) {
        if (i < most_ops)
            text += fmt::format("  delegated {:<21} {:>5} nodes\n", ops[i].name, ops[i].nodes);
        else
            rest += ops[i].nodes;
    }
    return rest > 0 ? text + fmt::format("  delegated {:<21} {:>5} nodes\n", "others", rest) : text;
}

const char * codec_name(int number) { return number >= 1 && number <= static_cast<int>(kv_codec::count) ? traits_of_codecs[number - 1].name : "rows"; }

// Keys / values of each head, for layers that have any: [layer, heads as "n5/n4"].
std::vector<std::pair<int, std::vector<std::string>>> kv_map(const counter_block & block) {
    std::vector<std::pair<int, std::vector<std::string>>> layers;
    for (int layer = 0; layer < kv_map_layers; layer++) {
        std::vector<std::string> heads;
        for (int head = 0; head < kv_map_heads; head++) {
            const int codecs = block.kv_codecs[layer][head].load(std::memory_order_relaxed);
            if (codecs != 0) heads.push_back(fmt::format("{}/{}", codec_name(codecs & 15), codec_name(codecs >> 4)));
        }
        if (!heads.empty()) layers.emplace_back(layer, std::move(heads));
    }
    return layers;
}

std::string kv_text(const counter_block & block) {
    const auto layers = kv_map(block);
    if (layers.empty()) return "  KV cache: rows as declared\n";
    std::string text = "  KV cache, keys/values of each head\n";
    for (const auto & [layer, heads] : layers) text += fmt::format("  layer {:>3}  {}\n", layer, fmt::join(heads, "  "));
    return text;
}

json kv_json(const counter_block & block) {
    json list = json::array();
    for (const auto & [layer, heads] : kv_map(block)) list.push_back({{"layer", layer}, {"heads", heads}});
    return list;
}

json process_json(const counter_block & block) {
    json counters = json::object(), units = json::object(), ops = json::object();
    for (int i = 0; i < known_counters(block); i++) {
        const counter_info & info = info_of(static_cast<counter>(i));
        counters[info.name] = block.values[i].load(std::memory_order_relaxed);
        units[info.name] = info.unit;
    }
    for (const op_count & op : delegated_ops(block)) ops[op.name] = op.nodes;
    const double share = own_share(block);
    return {{"process", block.process}, {"program", block.program},
            {"host", block.host},       {"isa", block.isa},
            {"started", block.started}, {"uptime", uptime(block)},
            {"counters", counters},     {"units", units},
            {"delegated", ops},         {"own_share", share < 0 ? json() : json(share)},
            {"kv", kv_json(block)}};
}

// Returns the number of processes shown.
size_t show(const status_options & options) {
    std::vector<std::string> complaints;
    std::vector<counter_file> files = read_counter_files(os::runtime_directory(), complaints);
    files.erase(std::remove_if(files.begin(), files.end(),
                               [&](const counter_file & f) { return options.pid != 0 && f.block->process != options.pid; }),
                files.end());
    for (const std::string & complaint : complaints) fmt::print(stderr, "alloy status: {}\n", complaint);
    if (options.json) {
        json list = json::array();
        for (const counter_file & file : files) list.push_back(process_json(*file.block));
        // Watched, each look is one line.
        std::puts(list.dump(options.watch > 0 ? -1 : 2, ' ', false, json::error_handler_t::replace).c_str());
        return files.size();
    }
    for (size_t i = 0; i < files.size(); i++) {
        fmt::print("{}{}", i == 0 ? "" : "\n", process_text(*files[i].block));
        if (options.kv) fmt::print("{}", kv_text(*files[i].block));
    }
    if (files.empty() && options.pid == 0)
        std::puts("No process uses the plugin now.");
    else if (files.empty())
        fmt::print("Process {} does not use the plugin, or GGML_ALLOY_COUNTERS=0 hides it.\n", options.pid);
    return files.size();
}

} // namespace

int status(const status_options & options) {
    while (true) {
        if (options.watch > 0 && !options.json && isatty(STDOUT_FILENO)) std::fputs("\033[H\033[2J", stdout);
        const size_t shown = show(options);
        if (options.watch <= 0) return shown == 0 && options.pid != 0 ? exit_bad : exit_good;
        if (std::fflush(stdout) != 0) return exit_good; // the reader is gone
        std::this_thread::sleep_for(std::chrono::duration<double>(options.watch));
    }
}

} // namespace alloy::tool
