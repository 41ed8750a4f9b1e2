// What `alloy bench` found: raw samples, what follows from them, and the forms that it is told in.
#pragma once
#include "statistics.h"

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace alloy::tool {

struct bench_samples { // one value a round
    std::vector<double> tokens_per_second;
    std::vector<double> memory; // peak anonymous bytes of the process while this test ran; 0: not seen
};

struct bench_test {
    std::string name;
    int n_prompt = 0, n_gen = 0, n_depth = 0;
    std::vector<bench_samples> sides; // as bench_report::sides
};

struct bench_report {
    nlohmann::ordered_json head;    // machine, host, model, settings, date, command
    std::vector<std::string> sides; // stock's ways, then "alloy"
    std::vector<bench_test> tests;
    nlohmann::ordered_json counters = nlohmann::ordered_json::object(); // of the last alloy process
    std::vector<std::string> notes;                                     // what the reader must know: ended early, a side left out
    int rounds = 0;                                                     // finished
    bool is_complete = true;
};

struct bench_comparison {
    size_t stock = 0; // the side that counts: of stock's ways the one with the larger median
    double stock_median = 0, stock_spread = 0, alloy_median = 0, alloy_spread = 0;
    double ratio = 0; // median of the rounds' ratios
    interval ratio_interval;
    double stock_memory = 0, alloy_memory = 0; // medians, bytes; NaN: not seen

    const char * verdict() const; // "faster", "slower", "no difference seen", "too few rounds"
};
bench_comparison compare(const bench_test & test);

nlohmann::ordered_json to_json(const bench_report & report);
bool from_json(const nlohmann::ordered_json & saved, bench_report & report, std::string & complaint);
std::string to_table(const bench_report & report);
std::string to_csv(const bench_report & report);
std::string to_page(const bench_report & report); // HTML that needs nothing else

} // namespace alloy::tool
