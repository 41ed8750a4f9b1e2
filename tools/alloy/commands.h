// The commands of `alloy`. Each returns the exit code of the process.
#pragma once
#include <string>
#include <vector>

namespace alloy::tool {

enum exit_code : int {
    exit_good = 0,
    exit_bad = 1,         // doctor: the plugin would not be used; status: no such process
    exit_usage = 2,       // wrong command line; bench, quality: nothing was measured for want of a host, model or disk
    exit_no_plugin = 125, // run: libggml-alloy.so is missing
    exit_not_executable = 126,
    exit_not_found = 127,
    exit_interrupted = 130, // bench, quality: by ^C; what was finished is reported
};

struct doctor_options {
    std::vector<std::string> hosts; // files or folders; empty: PATH
    std::string plugin;
    bool json = false;
};
int doctor(const doctor_options & options);

struct run_options {
    std::vector<std::string> command;
    std::string plugin;
    bool print = false;
};
int run(const run_options & options); // does not return when the program was started

struct status_options {
    bool json = false;
    int pid = 0;      // 0: all
    bool kv = false;  // also what each head of the KV cache is sealed as
    double watch = 0; // seconds between two looks; 0: once
};
int status(const status_options & options);

struct metrics_options {
    int port = 0; // 0: the system chooses
};
int metrics(const metrics_options & options); // until ^C

struct top_options {
    double interval = 1; // seconds
    bool once = false;
};
int top(const top_options & options); // until q or ^C

struct knobs_options {
    bool markdown = false;
};
int knobs(const knobs_options & options);

struct bench_options {
    std::string model, host, plugin;
    std::string fa;                     // -fa of the side with the plugin; empty: the host's default
    std::vector<std::string> arguments; // for llama-bench
    int rounds = 5, warmup = 1;
    bool json = false, csv = false;
    std::string html, save, from; // files
};
int bench(const bench_options & options);

struct quality_options {
    std::string model, text, host, plugin;
    std::vector<std::string> presets = {"exact", "compact"}; // values of GGML_ALLOY_KV, or "stock-TYPE"
    int context = 2048, chunks = 4, ubatch = 512;
    std::vector<int> lengths = {1024, 4096}; // of the documents of the probes, tokens
    int documents = 3;                       // of each length
    double patience = 60;                    // seconds that llama-server may do nothing
    bool without_probes = false, without_references = false;
    std::string state; // folder for what is kept until all is done; empty: in the user's cache
    bool keep = false, json = false, csv = false;
    std::string html, save, from; // files
};
int quality(const quality_options & options);

} // namespace alloy::tool
