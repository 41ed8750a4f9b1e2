// The page of `alloy quality`.
#include "page.h"
#include "quality_report.h"

#include <limits>
#include <map>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

using json = nlohmann::ordered_json;
using rows = std::vector<std::vector<std::string>>;
constexpr double no_mark = std::numeric_limits<double>::quiet_NaN();

std::vector<std::string> cells(const std::string & name, const divergence & d, const std::string & ppl) {
    return {name,
            fmt::format("{:.6f} ± {:.6f}", d.kld.value, d.kld.error),
            fmt::format("{:.5f}", d.kld_99),
            fmt::format("{:.5f}", d.kld_max),
            fmt::format("{:.3f} ± {:.3f}", d.same_top.value, d.same_top.error),
            ppl};
}

std::string divergences(const json & report) {
    rows table;
    if (report.contains("floor")) table.push_back(cells("floor: stock against itself", divergence_from(report["floor"]), ""));
    for (const json & mode : report["modes"])
        table.push_back(cells(
            mode["name"], divergence_from(mode["divergence"]),
            fmt::format("{:+.3f} ± {:.3f}", mode["change"]["ppl"].get<double>(), mode["change"]["ppl_error"].get<double>())));
    return html_table({"mode", "mean KLD", "99 % KLD", "max KLD", "same top %", "PPL %"}, table);
}

std::string gates(const json & report) {
    rows table;
    for (const json & mode : report["modes"]) {
        for (const json & gate : mode["gates"])
            table.push_back({mode["name"], gate["what"], fmt::format("{:.4g}", gate["limit"].get<double>()),
                             fmt::format("{:.4g}", gate["value"].get<double>()), gate["result"]});
    }
    return table.empty() ? "" : "<h2>Gates</h2>\n" + html_table({"mode", "what", "limit", "found", ""}, table);
}

std::string divergence_chart(const json & report) {
    std::vector<chart_bar> bars;
    const auto add = [&](const std::string & name, const divergence & d) {
        bars.push_back({name, std::max(0.0, d.kld.value), {d.kld.value - 2 * d.kld.error, d.kld.value + 2 * d.kld.error}});
    };
    if (report.contains("floor")) add("floor", divergence_from(report["floor"]));
    for (const json & mode : report["modes"]) add(mode["name"], divergence_from(mode["divergence"]));
    return bar_chart("Mean KLD", "line: two standard errors", bars, no_mark);
}

// Right tokens in percent over length, for one kind of question.
chart_series recall_series(const std::string & name, const json & questions, const std::string & kind) {
    std::map<double, std::pair<double, double>> by_length; // right, all
    for (const json & q : questions) {
        if (q["kind"] != kind) continue;
        for (const int right : q["right"].get<std::vector<int>>()) {
            by_length[q["length"].get<double>()].first += right;
            by_length[q["length"].get<double>()].second += 1;
        }
    }
    chart_series series{name, {}, {}};
    for (const auto & [length, counts] : by_length) series.line.push_back({length, 100 * counts.first / counts.second});
    return series;
}

std::string recall_charts(const json & report) {
    if (!report.contains("stock_recall")) return {};
    std::string html;
    for (const char * kind : {"pass key", "block"}) {
        std::vector<chart_series> series = {recall_series("stock", report["stock_recall"], kind)};
        for (const json & mode : report["modes"]) {
            if (mode.contains("recall")) series.push_back(recall_series(mode["name"], mode["recall"], kind));
        }
        html += line_chart(std::string("Recall, ") + kind, "tokens of the document", "right tokens %", series);
    }
    return html;
}

std::string probes(const json & report) {
    rows recall, greedy;
    const auto add = [&](const std::string & name, const json & summary) {
        for (const auto & [kind, k] : summary.items())
            recall.push_back({name, kind, fmt::format("{} of {}", k["whole"].get<int>(), k["of"].get<int>()),
                              fmt::format("{} of {}", k["tokens"].get<int>(), k["of_tokens"].get<int>()),
                              fmt::format("-{} +{}", k["lost"].get<int>(), k["won"].get<int>())});
    };
    if (report.contains("stock_recall_summary")) add("stock", report["stock_recall_summary"]);
    for (const json & mode : report["modes"]) {
        if (mode.contains("recall_summary")) add(mode["name"], mode["recall_summary"]);
        if (mode.contains("same_tokens"))
            greedy.push_back({mode["name"], fmt::format("{}", fmt::join(mode["same_tokens"].get<std::vector<int>>(), ", "))});
    }
    std::string html;
    if (!recall.empty())
        html += "<h2>Recall</h2>\n" +
                html_table({"mode", "question", "whole answers", "tokens", "lost and won against stock"}, recall);
    if (!greedy.empty())
        html += "<h2>Greedy texts: tokens before the first difference from stock</h2>\n" +
                html_table({"mode", "of 64, each text"}, greedy);
    return html;
}

json facts(const json & report) {
    json list = json::object();
    for (const char * name : {"date", "version", "plugin", "model", "text", "context", "chunks", "ubatch", "base_ppl", "lengths",
                              "documents", "settings", "machine", "host"}) {
        if (report.contains(name)) list[name] = report[name];
    }
    return list;
}

} // namespace

std::string quality_page(const json & report) {
    std::string body = "<p class=\"soft\">Against the same model's next-token distributions by stock with an f16 cache. The "
                       "floor is stock measured against itself: its base file rounds. "
                       "PPL is over stock's own; ± is one standard error.</p>\n";
    body += notes_list(report["notes"].get<std::vector<std::string>>()) + divergences(report) + gates(report);
    body += "<div class=\"charts\">\n" + divergence_chart(report) + recall_charts(report) + "</div>\n" + probes(report);
    body += "<h2>Where</h2>\n" + facts_table(facts(report));
    for (const json & mode : report["modes"]) {
        if (mode.contains("counters"))
            body += fmt::format("<details><summary>Counters of {}</summary>\n", escape(mode["name"].get<std::string>())) +
                    facts_table(mode["counters"]) + "</details>\n";
    }
    return whole_page("alloy quality: " + report["model"]["file"].get<std::string>(), body);
}

} // namespace alloy::tool
