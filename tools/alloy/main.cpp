// alloy: the command line of ggml-alloy.
#include "commands.h"
#include "knobs.h"

#include <algorithm>
#include <cstdio>
#include <exception>
#include <iterator>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

namespace alloy::tool {

int knobs(const knobs_options & options) {
    std::fputs((options.markdown ? knobs_markdown() : knobs_text(read_knobs())).c_str(), stdout);
    return exit_good;
}

namespace {

constexpr const char * examples = R"(Examples:
  alloy doctor                          would the llama.cpp on PATH use the plugin, and if not, why not
  alloy doctor ~/llama.cpp/build/bin    the same for another one
  alloy run llama-server -m model.gguf  start it with the plugin
  alloy run --print llama-cli -h        show the command and the environment, start nothing
  alloy bench -m model.gguf -p 512 -n 64 -d 0,4096 --html report.html
                                        stock against alloy with your llama-bench, on your machine
  alloy quality -m model.gguf -f text.txt --preset compact --html quality.html
                                        what a mode changes in what the model says
  alloy status --watch 1                what the plugin does in each running process
  alloy top                             the same, live
  alloy metrics --port 9191             the same for Prometheus, on 127.0.0.1 only

Exit codes:
)";
constexpr const char * doctor_codes =
    "  doctor   0 the plugin would be used (by each host named, or by the first one on PATH), 1 it would not\n";
constexpr const char * run_codes =
    "  run      that of the program; 125 libggml-alloy.so is missing, 126 the program is not executable, 127 it is not found\n";
constexpr const char * status_codes = "  status   0; 1 when --pid names a process that does not use the plugin\n";
constexpr const char * bench_codes =
    "  bench    2 nothing was measured (no llama-bench, model or disk, or an option that it refuses), 1 a side failed or the "
    "plugin did not run, 130 stopped by ^C\n";
constexpr const char * quality_codes = "  quality  as bench; 1 also when a mode does not keep its gates\n";
constexpr const char * all_codes = "  all      2 wrong command line\n";

struct command_line {
    doctor_options for_doctor;
    run_options for_run;
    status_options for_status;
    knobs_options for_knobs;
    metrics_options for_metrics;
    top_options for_top;
    bench_options for_bench;
    quality_options for_quality;
};

// Words before PROGRAM are ours, all others are the program's, whatever they look like.
std::vector<std::string> take_program(int argc, char ** argv, int & own) {
    own = argc;
    if (argc < 2 || std::string(argv[1]) != "run") return {};
    for (int i = 2; i < argc; i++) {
        const std::string word = argv[i];
        if (word == "--plugin")
            i++; // its value
        else if (word == "--" || word.empty() || word[0] != '-') {
            own = i;
            return {argv + i + (word == "--" ? 1 : 0), argv + argc};
        }
    }
    return {};
}

// Words of `alloy bench` that are not ours are llama-bench's, wherever they stand.
void take_bench_words(std::vector<std::string> & words, bench_options & options) {
    constexpr const char * with_value[] = {"-m",       "--model", "--host", "--plugin", "--rounds",
                                           "--warmup", "--html",  "--save", "--from"};
    constexpr const char * alone[] = {"--json", "--csv", "-h", "--help"};
    std::vector<std::string> own = {words[0]};
    const auto is_one_of = [](const auto & list, const std::string & word) {
        return std::any_of(std::begin(list), std::end(list), [&](const char * name) { return word == name; });
    };
    for (size_t i = 1; i < words.size(); i++) {
        const std::string name = words[i].substr(0, words[i].rfind("--", 0) == 0 ? words[i].find('=') : std::string::npos);
        const bool has_next = i + 1 < words.size();
        if (is_one_of(alone, words[i])) {
            own.push_back(words[i]);
        } else if (is_one_of(with_value, name)) {
            own.push_back(words[i]);
            if (name == words[i] && has_next) own.push_back(words[++i]);
        } else if ((words[i] == "-fa" || words[i] == "--flash-attn") && has_next) {
            options.fa = words[++i];
        } else if (words[i] != "--") {
            options.arguments.push_back(words[i]);
        }
    }
    words = own;
}

template <class Options> void describe_report_files(CLI::App & command, Options & options) {
    command.add_option("--html", options.html, "Also a page with charts")->type_name("FILE");
    command.add_option("--save", options.save, "Also the report as --json writes it")->type_name("FILE");
    command.add_option("--from", options.from, "Measure nothing, show a saved report again")->type_name("FILE");
}

void describe_bench(CLI::App & bench, bench_options & options) {
    bench.add_option("-m,--model", options.model, "The model")->type_name("FILE");
    bench.add_option("--host", options.host, "Where llama-bench is; without it, PATH")->type_name("DIR");
    bench.add_option("--plugin", options.plugin, "Another libggml-alloy.so")->type_name("FILE");
    bench.add_option("--rounds", options.rounds, "Rounds that count; each runs stock with -fa on, with -fa off, and alloy")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    bench.add_option("--warmup", options.warmup, "Rounds before them that do not count")
        ->check(CLI::Range(0, 100))
        ->capture_default_str();
    CLI::Option * json = bench.add_flag("--json", options.json, "The report on stdout, with raw samples");
    bench.add_flag("--csv", options.csv, "The raw samples on stdout")->excludes(json);
    describe_report_files(bench, options);
}

void describe_quality(CLI::App & quality, quality_options & options) {
    quality.add_option("-m,--model", options.model, "The model")->type_name("FILE");
    quality.add_option("-f,--file", options.text, "Prose, two contexts long at least")->type_name("FILE");
    quality.add_option("--host", options.host, "Where llama-perplexity and llama-server are; without it, PATH")->type_name("DIR");
    quality.add_option("--plugin", options.plugin, "Another libggml-alloy.so")->type_name("FILE");
    quality
        .add_option("--preset", options.presets,
                    "A value of GGML_ALLOY_KV, or stock-TYPE for stock with such a cache; may be repeated")
        ->allow_extra_args(false)
        ->capture_default_str();
    quality.add_option("--context", options.context, "Tokens of a chunk; the second half is scored")
        ->check(CLI::Range(64, 1048576))
        ->capture_default_str();
    quality.add_option("--chunks", options.chunks)->check(CLI::Range(1, 1000000))->capture_default_str();
    quality.add_option("--ubatch", options.ubatch, "Tokens of a step")->check(CLI::Range(1, 65536))->capture_default_str();
    quality.add_option("--length", options.lengths, "Tokens of the documents in which things are to be found; may be repeated")
        ->allow_extra_args(false)
        ->check(CLI::Range(768, 1048576))
        ->capture_default_str();
    quality.add_option("--documents", options.documents, "Of each length")->check(CLI::Range(1, 1000))->capture_default_str();
    quality.add_flag("--no-probes", options.without_probes, "Distributions only, no questions to llama-server");
    quality.add_option("--patience", options.patience, "Give llama-server up after so many seconds in which it does nothing")
        ->check(CLI::Range(0.1, 86400.0))
        ->type_name("SECONDS")
        ->capture_default_str();
    quality.add_flag("--no-references", options.without_references,
                     "Do not measure the caches of stock that the gates of int8 (q8_0) and compact (q4_0) compare with");
    quality.add_option("--state", options.state, "Where finished steps and stock's logits are kept until the end")
        ->type_name("DIR");
    quality.add_flag("--keep", options.keep, "Do not remove them at the end");
    CLI::Option * json = quality.add_flag("--json", options.json, "The report on stdout");
    quality.add_flag("--csv", options.csv, "The distributions' figures on stdout")->excludes(json);
    describe_report_files(quality, options);
}

void describe(CLI::App & app, command_line & line) {
    app.set_version_flag("--version", "alloy " ALLOY_VERSION);
    app.require_subcommand(1);

    CLI::App * doctor = app.add_subcommand("doctor", "Would llama.cpp use the plugin, and if not, why not");
    doctor->add_option("HOST", line.for_doctor.hosts, "Programs or folders; without one, the llama.cpp programs on PATH");
    doctor->add_option("--plugin", line.for_doctor.plugin, "Another libggml-alloy.so")->type_name("FILE");
    doctor->add_flag("--json", line.for_doctor.json, "For scripts");

    CLI::App * run =
        app.add_subcommand("run", "Start a llama.cpp program with the plugin: alloy run [OPTIONS] [--] PROGRAM [ARGS..]");
    run->add_option("--plugin", line.for_run.plugin, "Another libggml-alloy.so")->type_name("FILE");
    run->add_flag("--print", line.for_run.print, "Show command and environment instead");

    CLI::App * status = app.add_subcommand("status", "What the plugin does in each running process");
    status->add_flag("--json", line.for_status.json, "For scripts; with --watch one line a look");
    status->add_flag("--kv", line.for_status.kv, "Also what each head of the KV cache is compressed to");
    status->add_option("--pid", line.for_status.pid, "Only this process")->check(CLI::PositiveNumber)->type_name("N");
    status->add_option("--watch", line.for_status.watch, "Look again every so many seconds")
        ->check(CLI::Range(0.05, 86400.0))
        ->type_name("SECONDS");

    CLI::App * knobs = app.add_subcommand("knobs", "The environment variables of the plugin and their values now");
    knobs->add_flag("--markdown", line.for_knobs.markdown, "The page docs/knobs.md");

    CLI::App * metrics =
        app.add_subcommand("metrics", "The counters of all running processes as Prometheus text, on 127.0.0.1 only");
    metrics->add_option("--port", line.for_metrics.port, "0: any that is free; the address is told on stderr")
        ->check(CLI::Range(0, 65535))
        ->required()
        ->type_name("N");

#ifdef ALLOY_HAS_TOP
    CLI::App * top = app.add_subcommand("top", "What the plugin does in each running process, live; q quits");
    top->add_option("--interval", line.for_top.interval, "Seconds between two looks")
        ->check(CLI::Range(0.05, 3600.0))
        ->capture_default_str();
    top->add_flag("--once", line.for_top.once, "One look, without taking the terminal");
#endif

    CLI::App * bench = app.add_subcommand(
        "bench", "Stock against alloy: alloy bench -m MODEL [OPTIONS] [LLAMA-BENCH ARGUMENTS, like -p 512 -n 64 -d 0,4096]");
    describe_bench(*bench, line.for_bench);

    CLI::App * quality =
        app.add_subcommand("quality", "What a mode changes in what a model says: alloy quality -m MODEL -f TEXT");
    describe_quality(*quality, line.for_quality);

    CLI::App * help = app.add_subcommand("help", "This text, or that of one command");
    help->add_option("COMMAND", "doctor, run, bench, quality, status, top, metrics or knobs");

    const std::string codes = "Exit codes:\n";
    doctor->footer(codes + doctor_codes + all_codes);
    run->footer(codes + run_codes + all_codes);
    bench->footer(codes + bench_codes + all_codes);
    quality->footer(codes + bench_codes + quality_codes + all_codes);
    status->footer(codes + status_codes + all_codes);
    app.footer(std::string(examples) + doctor_codes + run_codes + bench_codes + quality_codes + status_codes + all_codes);
}

// `alloy help run` is `alloy run --help`.
std::vector<std::string> words_to_parse(int own, char ** argv, command_line & line) {
    std::vector<std::string> words(argv + 1, argv + own);
    if (!words.empty() && words[0] == "help") {
        words.erase(words.begin());
        words.emplace_back("--help");
    }
    if (!words.empty() && words[0] == "bench") take_bench_words(words, line.for_bench);
    return {words.rbegin(), words.rend()}; // CLI11 takes them from the back
}

int start(int argc, char ** argv) {
    CLI::App app("ggml-alloy makes an unmodified llama.cpp faster and smaller; alloy checks, starts and watches it.", "alloy");
    command_line line;
    describe(app, line);
    int own = argc;
    line.for_run.command = take_program(argc, argv, own);
    if (argc < 2) {
        std::fputs(app.help().c_str(), stderr);
        return exit_usage;
    }
    try {
        app.parse(words_to_parse(own, argv, line));
    } catch (const CLI::ParseError & error) {
        if (error.get_exit_code() == 0) return app.exit(error); // --help, --version
        fmt::print(stderr, "alloy: {}; see `alloy help`\n", error.what());
        return exit_usage;
    }
    if (app.got_subcommand("doctor")) return doctor(line.for_doctor);
    if (app.got_subcommand("status")) return status(line.for_status);
    if (app.got_subcommand("knobs")) return knobs(line.for_knobs);
    if (app.got_subcommand("bench")) return bench(line.for_bench);
    if (app.got_subcommand("metrics")) return metrics(line.for_metrics);
#ifdef ALLOY_HAS_TOP
    if (app.got_subcommand("top")) return top(line.for_top);
#endif
    if (app.got_subcommand("quality")) return quality(line.for_quality);
    if (line.for_run.command.empty()) {
        fmt::print(stderr, "alloy run: no program, expected alloy run [--] PROGRAM [ARGS..]\n");
        return exit_usage;
    }
    return run(line.for_run);
}

} // namespace
} // namespace alloy::tool

int main(int argc, char ** argv) {
    try {
        return alloy::tool::start(argc, argv);
    } catch (const std::exception & error) {
        fmt::print(stderr, "alloy: {}\n", error.what());
        return alloy::tool::exit_bad;
    }
}
