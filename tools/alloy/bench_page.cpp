// The page of `alloy bench`.
#include "bench_report.h"
#include "page.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

using tests = std::vector<const bench_test *>;
constexpr double no_mark = std::numeric_limits<double>::quiet_NaN();
constexpr double mib = 1048576;

// Tests that differ in depth only, in the order of their first one.
std::vector<std::pair<std::string, tests>> by_depth(const bench_report & report) {
    std::vector<std::pair<std::string, tests>> groups;
    for (const bench_test & test : report.tests) {
        std::string name = test.name;
        if (const std::string depth = fmt::format(" @ d{}", test.n_depth); name.find(depth) != std::string::npos)
            name.erase(name.find(depth), depth.size());
        const auto known = std::find_if(groups.begin(), groups.end(), [&](const auto & g) { return g.first == name; });
        if (known == groups.end())
            groups.push_back({name, {&test}});
        else
            known->second.push_back(&test);
    }
    return groups;
}

using pick = std::vector<double> (*)(const bench_samples &);

std::vector<double> speeds(const bench_samples & s) { return s.tokens_per_second; }
std::vector<double> memories(const bench_samples & s) {
    std::vector<double> seen;
    for (const double bytes : s.memory) {
        if (bytes > 0) seen.push_back(bytes / mib);
    }
    return seen;
}

std::string chart_of(const bench_report & report, const std::string & title, const char * unit, const tests & group,
                     pick values) {
    if (group.size() == 1) { // nothing to draw a line through
        std::vector<chart_bar> bars;
        for (size_t side = 0; side < report.sides.size(); side++) {
            const std::vector<double> seen = values(group[0]->sides[side]);
            if (!seen.empty()) bars.push_back({report.sides[side], median(seen), {quantile(seen, 0), quantile(seen, 1)}});
        }
        return bar_chart(fmt::format("{}, {}", title, unit), "median; line: smallest to largest", bars, no_mark);
    }
    std::vector<chart_series> series;
    for (size_t side = 0; side < report.sides.size(); side++) {
        chart_series one{report.sides[side], {}, {}};
        for (const bench_test * test : group) {
            const std::vector<double> seen = values(test->sides[side]);
            if (seen.empty()) continue;
            one.line.push_back({static_cast<double>(test->n_depth), median(seen)});
            for (const double value : seen) one.samples.push_back({static_cast<double>(test->n_depth), value});
        }
        std::sort(one.line.begin(), one.line.end(), [](const chart_point & a, const chart_point & b) { return a.x < b.x; });
        series.push_back(std::move(one));
    }
    return line_chart(title, "tokens in the cache before the test", unit, series);
}

std::string ratios_chart(const bench_report & report) {
    std::vector<chart_bar> bars;
    for (const bench_test & test : report.tests) {
        const bench_comparison c = compare(test);
        bars.push_back({test.name, c.ratio, c.ratio_interval});
    }
    return bar_chart("Ratio to stock's better side", "1: as fast as stock; line: 95 % interval", bars, 1);
}

std::string mib_text(double bytes) { return std::isfinite(bytes) ? fmt::format("{:.0f}", bytes / mib) : "?"; }

std::string results(const bench_report & report) {
    std::vector<std::vector<std::string>> rows;
    for (const bench_test & test : report.tests) {
        const bench_comparison c = compare(test);
        const interval & i = c.ratio_interval;
        rows.push_back({test.name, fmt::format("{:.2f} ± {:.0f} %", c.stock_median, 100 * c.stock_spread), report.sides[c.stock],
                        fmt::format("{:.2f} ± {:.0f} %", c.alloy_median, 100 * c.alloy_spread), fmt::format("{:.3f}", c.ratio),
                        std::isfinite(i.low) ? fmt::format("{:.3f} .. {:.3f}", i.low, i.high) : "-", c.verdict(),
                        mib_text(c.stock_memory), mib_text(c.alloy_memory)});
    }
    return html_table({"test", "stock t/s", "which", "alloy t/s", "ratio", "95 %", "", "stock MiB", "alloy MiB"}, rows);
}

std::string raw_samples(const bench_report & report) {
    std::vector<std::vector<std::string>> rows;
    for (const bench_test & test : report.tests) {
        for (size_t side = 0; side < report.sides.size(); side++) {
            std::string speed, memory;
            for (const double value : test.sides[side].tokens_per_second)
                speed += fmt::format("{}{:.2f}", speed.empty() ? "" : ", ", value);
            for (const double value : test.sides[side].memory)
                memory += fmt::format("{}{}", memory.empty() ? "" : ", ", value > 0 ? mib_text(value) : "?");
            rows.push_back({test.name, report.sides[side], speed, memory});
        }
    }
    return html_table({"test", "side", "t/s, round by round", "MiB"}, rows);
}

} // namespace

std::string to_page(const bench_report & report) {
    std::string body =
        fmt::format("<p class=\"soft\">{} rounds of one binary, stock and with the plugin in turn. ± is half the distance "
                    "between the quartiles; the interval is a "
                    "bootstrap of the median of the rounds' ratios. Memory is the peak that no file backs (RssAnon).</p>\n",
                    report.rounds);
    body += notes_list(report.notes) + results(report) + "<div class=\"charts\">\n" + ratios_chart(report);
    for (const auto & [name, group] : by_depth(report)) body += chart_of(report, name, "tokens/s", group, speeds);
    for (const auto & [name, group] : by_depth(report)) body += chart_of(report, name + ": peak memory", "MiB", group, memories);
    body += "</div>\n<h2>Where</h2>\n" + facts_table(report.head);
    body += "<details open><summary>Raw samples</summary>\n" + raw_samples(report) + "</details>\n";
    body +=
        "<details><summary>The plugin's counters in the last process</summary>\n" + facts_table(report.counters) + "</details>\n";
    const std::string model = report.head.contains("model") ? report.head["model"].value("file", "") : "";
    return whole_page("alloy bench: " + model, body);
}

} // namespace alloy::tool
