#include "quality_report.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

using json = nlohmann::ordered_json;

constexpr double none = std::numeric_limits<double>::quiet_NaN();
constexpr quality_gate gates[] = {
    {"exact", 0.0005, 0.01, 99.5, 0.05, "", none},
    {"int8", 0.005, 0.05, 98, 0.3, "stock-q8_0", 1},
    {"compact", 0.006, 0.2, 96, 0.5, "stock-q4_0", 0.1},
    {"tiny", 0.01, none, 96, 1, "", none},
};
constexpr quality_gate eviction = {"", none, none, 90, 2, "", none};

gate_result at_most(const measured & m, double limit) {
    if (m.value <= limit) return gate_result::pass;
    return m.value - 2 * m.error <= limit ? gate_result::unsure : gate_result::fail;
}

measured over(const divergence & floor, const divergence & d) {
    return {d.kld.value - floor.kld.value, std::hypot(d.kld.error, floor.kld.error)};
}

// Null when it was not measured (yet).
const json * mode_named(const json & report, const std::string & name) {
    for (const json & mode : report.at("modes")) {
        if (mode.at("name") == name) return &mode;
    }
    return nullptr;
}

json judged(const json & report, const quality_gate & gate, const divergence & d, const divergence & floor,
            const measured & ppl) {
    json list = json::array();
    const auto add = [&](const char * what, double limit, double value, gate_result result) {
        if (!std::isnan(limit)) list.push_back({{"what", what}, {"limit", limit}, {"value", value}, {"result", name_of(result)}});
    };
    const measured kld = over(floor, d);
    const measured ppl_size{std::abs(ppl.value), ppl.error};
    add("mean KLD over floor, at most", gate.kld, kld.value, at_most(kld, gate.kld));
    if (const json * reference = mode_named(report, gate.reference)) {
        const measured theirs = over(floor, divergence_from(reference->at("divergence")));
        const double limit = gate.share * theirs.value;
        add(fmt::format("mean KLD over floor, at most {:g} of {}'s", gate.share, gate.reference).c_str(), limit, kld.value,
            at_most({kld.value, std::hypot(kld.error, gate.share * theirs.error)}, limit));
    }
    add("99 % KLD, at most", gate.kld_99, d.kld_99, at_most({d.kld_99, 0}, gate.kld_99));
    add("same top %, at least", gate.same_top, d.same_top.value, at_most({-d.same_top.value, d.same_top.error}, -gate.same_top));
    add("PPL change %, at most", gate.ppl, ppl_size.value, at_most(ppl_size, gate.ppl));
    return list;
}

// Right answers, and tokens lost and won against stock, by kind of question.
json recall_summary(const json & mode, const json & stock) {
    json summary = json::object();
    for (size_t i = 0; i < mode.size(); i++) {
        json & kind = summary[mode[i].at("kind").get<std::string>()];
        if (kind.is_null()) kind = {{"whole", 0}, {"of", 0}, {"tokens", 0}, {"of_tokens", 0}, {"lost", 0}, {"won", 0}};
        const auto right = mode[i].at("right").get<std::vector<int>>();
        const auto before = i < stock.size() ? stock[i].at("right").get<std::vector<int>>() : right;
        const auto add = [&](const char * what, int by) { kind[what] = kind[what].get<int>() + by; };
        add("of", 1);
        add("whole", std::all_of(right.begin(), right.end(), [](int r) { return r != 0; }));
        for (size_t t = 0; t < right.size() && t < before.size(); t++) {
            add("of_tokens", 1);
            add("tokens", right[t]);
            add("lost", before[t] && !right[t]);
            add("won", right[t] && !before[t]);
        }
    }
    return summary;
}

// Tokens before the first difference, for each text.
json same_tokens(const json & mode, const json & stock) {
    json same = json::array();
    for (size_t i = 0; i < mode.size() && i < stock.size(); i++) {
        size_t equal = 0;
        while (equal < mode[i].size() && equal < stock[i].size() && mode[i][equal] == stock[i][equal]) equal++;
        same.push_back(equal);
    }
    return same;
}

} // namespace

json to_json(const divergence & d) {
    return {{"ppl", d.ppl.value},           {"ppl_error", d.ppl.error},
            {"ratio", d.ratio.value},       {"ratio_error", d.ratio.error},
            {"kld", d.kld.value},           {"kld_error", d.kld.error},
            {"kld_99", d.kld_99},           {"kld_max", d.kld_max},
            {"same_top", d.same_top.value}, {"same_top_error", d.same_top.error}};
}

divergence divergence_from(const json & s) {
    return {{s.at("ppl"), s.at("ppl_error")},
            {s.at("ratio"), s.at("ratio_error")},
            {s.at("kld"), s.at("kld_error")},
            s.at("kld_99"),
            s.at("kld_max"),
            {s.at("same_top"), s.at("same_top_error")}};
}

bool evicts(const json & settings) { return settings.value("GGML_ALLOY_KV_EVICT", "off") != "off"; }

quality_gate gate_of(const std::string & mode, bool leaves_out) {
    const bool is_share = !mode.empty() && mode.find_first_not_of("0123456789.") == std::string::npos;
    for (const quality_gate & gate : gates) {
        if (mode != gate.mode && !(is_share && &gate == std::end(gates) - 1)) continue;
        return leaves_out && &gate != gates ? eviction : gate; // exact mode keeps all cells
    }
    return {"", none, none, none, none, "", none};
}

const char * name_of(gate_result result) {
    return result == gate_result::pass ? "pass" : result == gate_result::unsure ? "unsure" : "fail";
}

measured ppl_change(const divergence & mode, const divergence & floor, double base_ppl) {
    const double error = std::sqrt(std::max(0.0, mode.ratio.error * mode.ratio.error - floor.ratio.error * floor.ratio.error));
    return {100 * (mode.ppl.value / base_ppl - 1), 100 * error};
}

void judge_modes(json & report) {
    if (!report.contains("floor")) return;
    const divergence floor = divergence_from(report["floor"]);
    const json empty = json::array();
    const bool leaves_out = evicts(report.value("settings", json::object()));
    const json stock_recall = report.value("stock_recall", empty), stock_greedy = report.value("stock_greedy", empty);
    if (!stock_recall.empty()) report["stock_recall_summary"] = recall_summary(stock_recall, stock_recall);
    for (json & mode : report["modes"]) {
        const divergence d = divergence_from(mode.at("divergence"));
        const measured ppl = ppl_change(d, floor, report.at("base_ppl"));
        mode["change"] = {{"ppl", ppl.value}, {"ppl_error", ppl.error}};
        mode["gates"] = judged(report, gate_of(mode.at("name"), leaves_out), d, floor, ppl);
        if (mode.contains("recall")) mode["recall_summary"] = recall_summary(mode["recall"], stock_recall);
        if (mode.contains("greedy")) mode["same_tokens"] = same_tokens(mode["greedy"], stock_greedy);
    }
}

std::string quality_csv(const json & report) {
    std::string text =
        "mode,ppl,ppl_change_percent,ppl_change_error,kld,kld_error,kld_99,kld_max,same_top_percent,same_top_error\n";
    const auto add = [&](const std::string & name, const divergence & d, double change, double error) {
        text += fmt::format("{},{},{:.5f},{:.5f},{},{},{},{},{},{}\n", name, d.ppl.value, change, error, d.kld.value, d.kld.error,
                            d.kld_99, d.kld_max, d.same_top.value, d.same_top.error);
    };
    if (report.contains("floor")) add("floor", divergence_from(report["floor"]), 0, 0);
    for (const json & mode : report.at("modes"))
        add(mode.at("name"), divergence_from(mode.at("divergence")), mode.at("change").at("ppl"),
            mode.at("change").at("ppl_error"));
    return text;
}

std::string quality_table(const json & report) {
    std::string text = fmt::format("{}, {} chunks of {} tokens; stock with f16 cache: PPL {:.4f}\n\n",
                                   report.at("model").at("file").get<std::string>(), report.at("chunks").dump(),
                                   report.at("context").dump(), report.value("base_ppl", 0.0));
    text += fmt::format("{:<12} {:>21} {:>10} {:>10} {:>17} {:>19}  {}\n", "mode", "mean KLD", "99 % KLD", "max KLD",
                        "same top %", "PPL %", "gates");
    const auto line = [&](const std::string & name, const divergence & d, const std::string & ppl,
                          const std::string & gates_text) {
        text += fmt::format("{:<12} {:>9.6f} +- {:>8.6f} {:>10.5f} {:>10.5f} {:>8.3f} +- {:>5.3f} {:>19}  {}\n", name,
                            d.kld.value, d.kld.error, d.kld_99, d.kld_max, d.same_top.value, d.same_top.error, ppl, gates_text);
    };
    if (report.contains("floor")) line("floor", divergence_from(report["floor"]), "", "stock against itself");
    for (const json & mode : report.at("modes")) {
        std::string verdicts;
        for (const json & gate : mode.at("gates")) {
            if (gate.at("result") != "pass")
                verdicts +=
                    fmt::format("{}{}: {} {:.4g} ({:.4g})", verdicts.empty() ? "" : "; ", gate["result"].get<std::string>(),
                                gate["what"].get<std::string>(), gate["limit"].get<double>(), gate["value"].get<double>());
        }
        if (verdicts.empty())
            verdicts = !mode.at("gates").empty() ? "pass" : mode.value("reference", false) ? "reference" : "none";
        line(mode.at("name"), divergence_from(mode.at("divergence")),
             fmt::format("{:+.3f} +- {:.3f}", mode["change"]["ppl"].get<double>(), mode["change"]["ppl_error"].get<double>()),
             verdicts);
    }
    const auto recall_line = [&](const std::string & name, const json & summary) {
        text += fmt::format("{:<12}", name);
        for (const auto & [kind, k] : summary.items())
            text += fmt::format("  {}: {}/{} whole, {}/{} tokens (-{} +{})", kind, k["whole"].get<int>(), k["of"].get<int>(),
                                k["tokens"].get<int>(), k["of_tokens"].get<int>(), k["lost"].get<int>(), k["won"].get<int>());
        text += "\n";
    };
    if (report.contains("stock_recall_summary")) {
        text += "\nrecalled after so many tokens (lost and won against stock)\n";
        recall_line("stock", report["stock_recall_summary"]);
        for (const json & mode : report["modes"]) {
            if (mode.contains("recall_summary")) recall_line(mode["name"], mode["recall_summary"]);
        }
    }
    if (report.contains("stock_greedy")) {
        text += "\ntokens of greedy texts before they differ from stock's\n";
        for (const json & mode : report["modes"]) {
            if (mode.contains("same_tokens"))
                text += fmt::format("{:<12}  {}\n", mode["name"].get<std::string>(),
                                    fmt::join(mode["same_tokens"].get<std::vector<int>>(), " "));
        }
    }
    for (const json & note : report.at("notes")) text += "note: " + note.get<std::string>() + "\n";
    return text;
}

} // namespace alloy::tool
