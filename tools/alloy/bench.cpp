// alloy bench: the user's own llama-bench, stock and with the plugin in turn, so that a drift of the machine meets both.
#include "bench_report.h"
#include "bench_rows.h"
#include "child.h"
#include "commands.h"
#include "host.h"
#include "plugin_file.h"
#include "progress.h"
#include "report_head.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

using json = nlohmann::ordered_json;
using texts = std::vector<std::string>;

struct refused {
    std::string why; // one line
    int code = exit_usage;
    bool is_final = false; // no other way of stock would help
};

struct bench_run {
    const bench_options & options;
    std::string program;
    texts arguments;         // for both sides
    std::vector<side> sides; // stock's ways, then alloy
    bench_report report;
    progress told;
};

struct measured_row {
    bench_row row;
    uint64_t memory;
};

bool has_word(const texts & words, const texts & names) {
    return std::any_of(words.begin(), words.end(),
                       [&](const std::string & w) { return std::find(names.begin(), names.end(), w) != names.end(); });
}

// What we say to llama-bench ourselves; its own words follow.
void check_arguments(const bench_options & options) {
    if (has_word(options.arguments, {"-o", "--output"}))
        throw refused{"-o: alloy bench reads llama-bench's output itself, expected --json, --csv or --html"};
    if (options.fa.find(',') != std::string::npos)
        throw refused{
            fmt::format("-fa {}: expected one value, for alloy's side; stock is always measured with both", options.fa)};
    if (!options.model.empty() && has_word(options.arguments, {"-hf", "-hfr", "--hf-repo"}))
        throw refused{"got both -m and -hf, expected one model"};
    if (options.model.empty() && !has_word(options.arguments, {"-hf", "-hfr", "--hf-repo"}))
        throw refused{"no model, expected -m FILE (or -hf REPO)"};
    std::string complaint;
    if (!options.model.empty() && !is_model_file(options.model, complaint)) throw refused{"-m: " + complaint};
    for (const std::string & path : {options.html, options.save}) {
        if (!path.empty() && !can_write(path, complaint)) throw refused{complaint};
    }
}

// A device of the plugin's can be asked for on its own side only. Without such words `device_flags` stay as they are.
texts without_own_device(texts arguments, texts & device_flags) {
    for (size_t i = 0; i + 1 < arguments.size(); i++) {
        if (arguments[i] != "-dev" && arguments[i] != "--device") continue;
        device_flags.clear();
        if (arguments[i + 1].find("ALLOY") == std::string::npos) continue;
        device_flags = {arguments[i], arguments[i + 1]};
        arguments.erase(arguments.begin() + static_cast<std::ptrdiff_t>(i),
                        arguments.begin() + static_cast<std::ptrdiff_t>(i) + 2);
        break;
    }
    return arguments;
}

std::vector<side> sides_of(const bench_options & options, const std::string & plugin, const texts & device_flags) {
    std::vector<side> sides;
    // What the user says of -fa is for alloy; stock shows its better side.
    for (const char * way : {"on", "off"}) sides.push_back({fmt::format("stock -fa {}", way), "", {"-fa", way}, {}});
    sides.push_back({"alloy", plugin, device_flags, {}});
    if (!options.fa.empty()) sides.back().flags.insert(sides.back().flags.end(), {"-fa", options.fa});
    return sides;
}

// What is told may be published.
std::string without_folder(std::string text, const std::string & path) {
    for (size_t at = 0; !path.empty() && (at = text.find(path)) != std::string::npos;) text.replace(at, path.size(), stem(path));
    return text;
}

// One llama-bench process. Throws when it says nothing that can be counted.
std::vector<measured_row> measure(bench_run & run, const side & as, finished_child & child) {
    std::vector<measured_row> rows;
    std::string complaint;
    texts command = {run.program};
    if (!run.options.model.empty()) command.insert(command.end(), {"-m", run.options.model});
    command.insert(command.end(), {"-o", "jsonl"});
    if (!has_word(run.options.arguments, {"-r", "--repetitions"})) command.insert(command.end(), {"-r", "1"});
    command.insert(command.end(), run.arguments.begin(), run.arguments.end());
    child = run_child(command, as, [&](const std::string & line, uint64_t memory) {
        if (line.empty()) return;
        measured_row row{{}, memory};
        std::string why;
        if (parse_bench_row(line, row.row, why))
            rows.push_back(std::move(row));
        else if (complaint.empty())
            complaint = why;
    });
    if (child.stopped) return {};
    if (!child.is_good()) {
        const std::string words = without_folder(child.last_words(), run.options.model);
        if (words.find("invalid parameter") != std::string::npos) throw refused{"llama-bench: " + words, exit_usage, true};
        throw refused{fmt::format("{}: llama-bench ended with {}: {}", as.name, child.ending(), words), exit_bad};
    }
    if (complaint.empty() && rows.empty()) complaint = "llama-bench printed no results";
    if (!complaint.empty()) throw refused{fmt::format("{}: {}", as.name, complaint), exit_bad};
    return rows;
}

// A comparison of stock with stock would be worse than none.
void require_sides_apart(const side & as, const finished_child & child) {
    const bool is_stock = as.plugin.empty();
    if (is_stock && child.counters && child.counters->values[static_cast<int>(counter::graphs)] > 0)
        throw refused{fmt::format("{}: the plugin ran here too, nothing to compare", as.name), exit_bad};
    if (is_stock) return;
    if (!child.counters)
        throw refused{
            "alloy: the plugin was not loaded (it published no counters), so nothing is reported; `alloy doctor` says why",
            exit_bad};
    if (!has_run(*child.counters))
        throw refused{"alloy: the plugin was loaded but computed nothing, so nothing is reported; see `alloy doctor`", exit_bad};
}

using round_rows = std::vector<std::vector<measured_row>>; // by side

bench_test & test_of(bench_report & report, const bench_row & row, size_t num_sides) {
    for (bench_test & test : report.tests) {
        if (test.name == row.test) return test;
    }
    return report.tests.emplace_back(
        bench_test{row.test, row.n_prompt, row.n_gen, row.n_depth, std::vector<bench_samples>(num_sides)});
}

void add_round(bench_report & report, round_rows & round) {
    for (auto & rows : round) {
        std::vector<bench_row> plain;
        for (measured_row & row : rows) plain.push_back(row.row);
        tell_apart(plain);
        for (size_t i = 0; i < rows.size(); i++) rows[i].row = plain[i];
    }
    for (size_t side = 0; side < round.size(); side++) {
        for (const measured_row & row : round[side]) {
            bench_test & test = test_of(report, row.row, round.size());
            test.sides[side].tokens_per_second.push_back(row.row.tokens_per_second);
            test.sides[side].memory.push_back(static_cast<double>(row.memory));
        }
    }
    report.rounds++;
    // A test that one side did not run cannot be compared.
    const auto cut = std::remove_if(report.tests.begin(), report.tests.end(), [&](const bench_test & t) {
        return std::any_of(t.sides.begin(), t.sides.end(), [&](const bench_samples & s) {
            return s.tokens_per_second.size() != static_cast<size_t>(report.rounds);
        });
    });
    if (cut != report.tests.end()) {
        const std::string name = cut->name;
        report.tests.erase(cut, report.tests.end());
        if (report.tests.empty()) report.rounds = 0;
        throw refused{fmt::format("'{}': not every side ran this test", name), exit_bad};
    }
}

void note_host(bench_run & run, const json & row, const finished_child & child) {
    run.report.counters = counters_json(*child.counters);
    if (run.report.head.contains("host")) return;
    run.report.head["host"] = host_json(run.program, child.counters.get());
    run.report.head["model"] = {{"file", stem(row.value("model_filename", run.options.model))},
                                {"type", row.value("model_type", "")},
                                {"size", row.value("model_size", 0ULL)},
                                {"parameters", row.value("model_n_params", 0ULL)},
                                {"threads", row.value("n_threads", 0)}};
}

// A way of stock that cannot run at all (-fa off with a quantised cache of values) is left out of the comparison.
void leave_out(bench_run & run, size_t which, const std::string & why) {
    run.report.notes.push_back(why + "; left out");
    run.told.forget(run.sides[which].name);
    run.sides[which].name.clear();
}

size_t stock_ways(const bench_run & run) {
    return static_cast<size_t>(
        std::count_if(run.sides.begin(), run.sides.end(), [](const side & s) { return s.plugin.empty() && !s.name.empty(); }));
}

// The order turns with each round: none always runs in another's wake. Returns false at ^C.
bool run_round(bench_run & run, int number, round_rows & round) {
    round.assign(run.sides.size(), {});
    for (size_t i = 0; i < run.sides.size(); i++) {
        const size_t which = (i + static_cast<size_t>(number)) % run.sides.size();
        const side & as = run.sides[which];
        run.told.start(fmt::format("round {}/{}{}, {}", number + 1, run.options.warmup + run.options.rounds,
                                   number < run.options.warmup ? " (warm-up)" : "", as.name),
                       as.name);
        finished_child child;
        try {
            round[which] = measure(run, as, child);
        } catch (const refused & why) {
            if (why.is_final || number > 0 || !as.plugin.empty() || stock_ways(run) < 2) throw;
            leave_out(run, which, why.why);
            continue;
        }
        run.told.finish(as.name, child.seconds);
        if (child.stopped) return false;
        require_sides_apart(as, child);
        if (!as.plugin.empty()) note_host(run, round[which][0].row.row, child);
    }
    for (size_t which = run.sides.size(); which-- > 0;) {
        if (!run.sides[which].name.empty()) continue;
        run.sides.erase(run.sides.begin() + static_cast<std::ptrdiff_t>(which));
        round.erase(round.begin() + static_cast<std::ptrdiff_t>(which));
    }
    return true;
}

int measure_rounds(bench_run & run) {
    const int all = run.options.warmup + run.options.rounds;
    for (const side & as : run.sides) run.told.expect(as.name, all);
    try {
        round_rows round;
        for (int number = 0; number < all && !was_interrupted(); number++) {
            if (!run_round(run, number, round)) break;
            if (number < run.options.warmup) continue;
            run.report.sides.clear();
            for (const side & as : run.sides) run.report.sides.push_back(as.name);
            add_round(run.report, round);
        }
    } catch (const refused & why) {
        run.told.end();
        if (run.report.rounds == 0) throw;
        run.report.is_complete = false;
        run.report.notes.push_back(fmt::format("ended early: {}", why.why));
        fmt::print(stderr, "alloy bench: {}\n", why.why);
        return exit_bad;
    }
    run.told.end();
    if (!was_interrupted()) return exit_good;
    if (run.report.rounds == 0) throw refused{"stopped before a round was finished", exit_interrupted};
    run.report.is_complete = false;
    run.report.notes.push_back(fmt::format("stopped by the user after {} of {} rounds", run.report.rounds, run.options.rounds));
    return exit_interrupted;
}

bench_report read_saved(const std::string & path) {
    std::ifstream file(path);
    if (!file) throw refused{path + ": not readable"};
    const json saved = json::parse(file, nullptr, false);
    bench_report report;
    std::string complaint;
    if (saved.is_discarded()) throw refused{path + ": no JSON"};
    if (!from_json(saved, report, complaint)) throw refused{path + ": " + complaint};
    return report;
}

void tell(const bench_options & options, const bench_report & report) {
    const std::string saved = to_json(report).dump(1, ' ', false, json::error_handler_t::replace) + "\n";
    std::fputs((options.json ? saved : options.csv ? to_csv(report) : to_table(report)).c_str(), stdout);
    std::string complaint;
    if (!options.save.empty() && !write_file(options.save, saved, complaint)) throw refused{complaint, exit_bad};
    if (!options.html.empty() && !write_file(options.html, to_page(report), complaint)) throw refused{complaint, exit_bad};
}

int bench_or_refuse(const bench_options & options) {
    if (!options.from.empty()) {
        tell(options, read_saved(options.from));
        return exit_good;
    }
    check_arguments(options);
    std::string program, plugin, complaint;
    texts device_flags;
    if (!find_host_program(options.host, "llama-bench", program, device_flags, complaint)) throw refused{complaint};
    if (!find_plugin(options.plugin, plugin, complaint)) throw refused{complaint};
    const texts arguments = without_own_device(options.arguments, device_flags);
    keep_interrupts();
    bench_run run{options, program, arguments, sides_of(options, plugin, device_flags), {}, progress("alloy bench")};
    run.report.head = {{"date", now_utc()},
                       {"version", ALLOY_VERSION},
                       {"plugin", plugin_version(plugin)},
                       {"arguments", options.arguments},
                       {"settings", settings_json({})},
                       {"warmup", options.warmup},
                       {"machine", machine_json()}};
    if (!options.fa.empty()) run.report.head["alloy_fa"] = options.fa;
    const int code = measure_rounds(run);
    tell(options, run.report);
    return code;
}

} // namespace

int bench(const bench_options & options) {
    try {
        return bench_or_refuse(options);
    } catch (const refused & why) {
        fmt::print(stderr, "alloy bench: {}\n", why.why);
        return why.code;
    }
}

} // namespace alloy::tool
