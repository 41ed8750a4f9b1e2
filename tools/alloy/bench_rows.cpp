#include "bench_rows.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

using json = nlohmann::ordered_json;

// Results, and what the two sides differ in by intent.
constexpr const char * no_settings[] = {"avg_ns",    "stddev_ns", "avg_ts",     "stddev_ts",     "samples_ns", "samples_ts",
                                        "test_time", "backends",  "devices",    "gpu_info",      "flash_attn", "n_prompt",
                                        "n_gen",     "n_depth",   "model_size", "model_n_params"};

json settings_of(const json & row) {
    json settings = row;
    for (const char * name : no_settings) settings.erase(name);
    return settings;
}

std::string name_of(int n_prompt, int n_gen, int n_depth) {
    std::string name = n_prompt > 0 && n_gen > 0 ? fmt::format("pp{}+tg{}", n_prompt, n_gen)
                       : n_gen > 0               ? fmt::format("tg{}", n_gen)
                                                 : fmt::format("pp{}", n_prompt);
    return n_depth > 0 ? fmt::format("{} @ d{}", name, n_depth) : name;
}

} // namespace

bool parse_bench_row(const std::string & line, bench_row & row, std::string & complaint) {
    const json found = json::parse(line, nullptr, false);
    if (!found.is_object()) {
        complaint = fmt::format("llama-bench printed '{:.60}', expected a row of -o jsonl", line);
        return false;
    }
    for (const char * name : {"n_prompt", "n_gen", "avg_ts"}) {
        if (found.contains(name) && found[name].is_number()) continue;
        complaint = fmt::format("llama-bench printed a row without a number '{}'", name);
        return false;
    }
    row.n_prompt = found["n_prompt"];
    row.n_gen = found["n_gen"];
    row.n_depth = found.contains("n_depth") && found["n_depth"].is_number() ? found["n_depth"].get<int>()
                                                                            : 0; // hosts before 2025 have none
    row.tokens_per_second = found["avg_ts"];
    if (!(row.tokens_per_second > 0)) {
        complaint = fmt::format("llama-bench printed {} t/s", row.tokens_per_second);
        return false;
    }
    row.backends = found.contains("backends") && found["backends"].is_string() ? found["backends"].get<std::string>() : "";
    row.test = name_of(row.n_prompt, row.n_gen, row.n_depth);
    row.settings = settings_of(found);
    row.row = found;
    return true;
}

void tell_apart(std::vector<bench_row> & rows) {
    std::map<std::string, int> times; // the same test twice is two tests
    for (bench_row & row : rows) {
        for (const auto & [name, value] : row.settings.items()) {
            const bool differs =
                std::any_of(rows.begin(), rows.end(), [&, &name = name, &value = value](const bench_row & other) {
                    return !other.settings.contains(name) || other.settings[name] != value;
                });
            if (differs) row.test += fmt::format(" {}={}", name, value.is_string() ? value.get<std::string>() : value.dump());
        }
        if (const int time = ++times[row.test]; time > 1) row.test += fmt::format(" ({})", time);
    }
}

} // namespace alloy::tool
