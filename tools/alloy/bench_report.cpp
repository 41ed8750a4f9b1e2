#include "bench_report.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

using json = nlohmann::ordered_json;

// Rounds in which memory was not seen do not count.
double memory_median(const bench_samples & samples) {
    std::vector<double> seen;
    for (const double bytes : samples.memory) {
        if (bytes > 0) seen.push_back(bytes);
    }
    return median(seen);
}

json number(double value) { return std::isfinite(value) ? json(value) : json(); }

json comparison_json(const bench_report & report, const bench_comparison & c) {
    return {{"stock", report.sides[c.stock]},
            {"stock_median", number(c.stock_median)},
            {"stock_spread", number(c.stock_spread)},
            {"alloy_median", number(c.alloy_median)},
            {"alloy_spread", number(c.alloy_spread)},
            {"ratio", number(c.ratio)},
            {"ratio_low", number(c.ratio_interval.low)},
            {"ratio_high", number(c.ratio_interval.high)},
            {"stock_memory", number(c.stock_memory)},
            {"alloy_memory", number(c.alloy_memory)},
            {"verdict", c.verdict()}};
}

std::string mib(double bytes) { return std::isfinite(bytes) ? fmt::format("{:.0f}", bytes / 1048576) : "?"; }

std::string interval_text(const interval & i) {
    return std::isfinite(i.low) ? fmt::format("{:.2f} .. {:.2f}", i.low, i.high) : "-";
}

std::string as_line(const json & value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

// RFC 4180.
std::string cell(const std::string & text) {
    if (text.find_first_of(",\"\n") == std::string::npos) return text;
    std::string quoted = "\"";
    for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
    return quoted + "\"";
}

} // namespace

const char * bench_comparison::verdict() const {
    if (!std::isfinite(ratio_interval.low)) return "too few rounds";
    if (ratio_interval.low > 1) return "faster";
    return ratio_interval.high < 1 ? "slower" : "no difference seen";
}

bench_comparison compare(const bench_test & test) {
    bench_comparison c;
    const size_t alloy = test.sides.size() - 1;
    const auto speed = [&](size_t side) -> const std::vector<double> & { return test.sides[side].tokens_per_second; };
    for (size_t i = 1; i < alloy; i++) {
        if (median(speed(i)) > median(speed(c.stock))) c.stock = i;
    }
    c.stock_median = median(speed(c.stock));
    c.stock_spread = spread(speed(c.stock));
    c.alloy_median = median(speed(alloy));
    c.alloy_spread = spread(speed(alloy));
    std::vector<double> ratios; // of one round: a drift of the machine is in both
    for (size_t i = 0; i < std::min(speed(alloy).size(), speed(c.stock).size()); i++)
        ratios.push_back(speed(alloy)[i] / speed(c.stock)[i]);
    c.ratio = median(ratios);
    c.ratio_interval = interval_of_median(ratios);
    c.stock_memory = memory_median(test.sides[c.stock]);
    c.alloy_memory = memory_median(test.sides[alloy]);
    return c;
}

json to_json(const bench_report & report) {
    json saved = {{"report", "alloy bench"}, {"format", 1}};
    saved.update(report.head);
    saved["rounds"] = report.rounds;
    saved["complete"] = report.is_complete;
    saved["notes"] = report.notes;
    saved["sides"] = report.sides;
    saved["tests"] = json::array();
    for (const bench_test & test : report.tests) {
        json sides = json::object();
        for (size_t i = 0; i < test.sides.size(); i++)
            sides[report.sides[i]] = {{"tokens_per_second", test.sides[i].tokens_per_second}, {"memory", test.sides[i].memory}};
        saved["tests"].push_back({{"name", test.name},
                                  {"n_prompt", test.n_prompt},
                                  {"n_gen", test.n_gen},
                                  {"n_depth", test.n_depth},
                                  {"result", comparison_json(report, compare(test))},
                                  {"samples", sides}});
    }
    saved["counters"] = report.counters;
    return saved;
}

bool from_json(const json & saved, bench_report & report, std::string & complaint) {
    try {
        if (saved.at("report") != "alloy bench" || saved.at("format") != 1) {
            complaint = "expected a report that `alloy bench --json` wrote";
            return false;
        }
        report = {};
        for (const auto & [name, value] : saved.items()) {
            if (name != "report" && name != "format" && name != "tests" && name != "sides" && name != "rounds" &&
                name != "complete" && name != "notes" && name != "counters")
                report.head[name] = value;
        }
        report.rounds = saved.at("rounds");
        report.is_complete = saved.at("complete");
        report.notes = saved.at("notes").get<std::vector<std::string>>();
        report.sides = saved.at("sides").get<std::vector<std::string>>();
        report.counters = saved.at("counters");
        for (const json & test : saved.at("tests")) {
            bench_test one{test.at("name"), test.at("n_prompt"), test.at("n_gen"), test.at("n_depth"), {}};
            for (const std::string & side : report.sides) {
                const json & samples = test.at("samples").at(side);
                one.sides.push_back({samples.at("tokens_per_second").get<std::vector<double>>(),
                                     samples.at("memory").get<std::vector<double>>()});
            }
            report.tests.push_back(std::move(one));
        }
    } catch (const json::exception & error) {
        complaint = error.what();
        return false;
    }
    if (report.sides.size() < 2 || report.sides.back() != "alloy") complaint = "no side 'alloy' beside one of stock";
    return report.sides.size() >= 2 && report.sides.back() == "alloy";
}

std::string to_table(const bench_report & report) {
    size_t width = 4;
    for (const bench_test & test : report.tests) width = std::max(width, test.name.size());
    std::string text;
    for (const char * key : {"model", "host", "machine"}) {
        if (!report.head.contains(key)) continue;
        const json & about = report.head[key];
        text += fmt::format("{:<8} ", key);
        bool first = true;
        for (const auto & [name, value] : about.items()) {
            if (value.is_null() || name == "isa" || name == "memory") continue;
            text += fmt::format("{}{} {}", first ? "" : ", ", name, as_line(value));
            first = false;
        }
        text += "\n";
    }
    if (report.head.contains("settings") && !report.head["settings"].empty()) {
        text += "settings";
        for (const auto & [name, value] : report.head["settings"].items()) text += fmt::format(" {}={}", name, as_line(value));
        text += "\n";
    }
    text += fmt::format("{} rounds, medians; +-: half the distance of the quartiles; []: 95 % interval of the ratio; MiB: peak "
                        "anonymous memory\n\n",
                        report.rounds);
    text += fmt::format("{:<{}}  {:>18}  {:>18}  {:>6}  {:<16} {:<19} {:>15}\n", "test", width, "stock t/s", "alloy t/s", "ratio",
                        "[95 %]", "", "MiB stock alloy");
    for (const bench_test & test : report.tests) {
        const bench_comparison c = compare(test);
        text += fmt::format("{:<{}}  {:>9.2f} +- {:>3.0f} %  {:>9.2f} +- {:>3.0f} %  {:>6.2f}  {:<16} {:<19} {:>9} {:>5}  {}\n",
                            test.name, width, c.stock_median, 100 * c.stock_spread, c.alloy_median, 100 * c.alloy_spread, c.ratio,
                            interval_text(c.ratio_interval), c.verdict(), mib(c.stock_memory), mib(c.alloy_memory),
                            report.sides[c.stock]);
    }
    for (const std::string & note : report.notes) text += "note: " + note + "\n";
    return text;
}

std::string to_csv(const bench_report & report) {
    std::string text = "test,n_prompt,n_gen,n_depth,side,round,tokens_per_second,memory_bytes\n";
    for (const bench_test & test : report.tests) {
        for (size_t side = 0; side < test.sides.size(); side++) {
            const bench_samples & samples = test.sides[side];
            for (size_t round = 0; round < samples.tokens_per_second.size(); round++)
                text += fmt::format("{},{},{},{},{},{},{},{:.0f}\n", cell(test.name), test.n_prompt, test.n_gen, test.n_depth,
                                    cell(report.sides[side]), round + 1, samples.tokens_per_second[round], samples.memory[round]);
        }
    }
    return text;
}

} // namespace alloy::tool
