// One row of `llama-bench -o jsonl`.
#pragma once
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace alloy::tool {

struct bench_row {
    std::string test; // "pp512", "tg128 @ d4096", in llama-bench's own words
    int n_prompt = 0, n_gen = 0, n_depth = 0;
    double tokens_per_second = 0;
    std::string backends;
    nlohmann::ordered_json settings; // everything that makes it another test: threads, batch, cache types, ..
    nlohmann::ordered_json row;
};

// Returns false and one line when a field is missing or of another kind.
bool parse_bench_row(const std::string & line, bench_row & row, std::string & complaint);

// "pp512" is not enough where llama-bench was given several values of something: what differs among rows is added, "pp512
// n_threads=2".
void tell_apart(std::vector<bench_row> & rows);

} // namespace alloy::tool
