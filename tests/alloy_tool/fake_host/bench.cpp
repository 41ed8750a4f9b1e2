// A llama-bench with known speeds: FAKE_BENCH_STOCK_ON, _STOCK_OFF and _ALLOY are t/s, one a start; behind the last one, the last
// again. FAKE_BENCH_STATE is a folder that counts the starts. FAKE_BENCH_FAIL="alloy 2" crashes the third start of that side,
// FAKE_BENCH_ROW=short leaves out a field, FAKE_BENCH_IDLE=1 is a plugin that computes nothing, FAKE_BENCH_SLEEP=S takes so long.
#include "host_side.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

using fake::argument;
using fake::variable;

namespace {

int starts_before(const std::string & side) {
    std::ofstream(variable("FAKE_BENCH_STATE") + "/" + side, std::ios::app) << '.';
    std::ifstream file(variable("FAKE_BENCH_STATE") + "/" + side);
    std::string dots;
    file >> dots;
    return static_cast<int>(dots.size()) - 1;
}

double speed(const std::string & side, int start) {
    std::istringstream list(variable(("FAKE_BENCH_" + side).c_str()));
    double value = 100;
    for (int i = 0; i <= start && list >> value; i++) {
    }
    return value;
}

void print_row(const std::string & side, int n_prompt, int n_gen, int depth, double speed) {
    const bool is_short = variable("FAKE_BENCH_ROW") == "short";
    std::printf(
        R"({"build_commit": "abc", "build_number": 1, "backends": "%s", "model_filename": "/x/model.gguf", "model_type": "fake 1B", )"
        R"("model_size": 10, "model_n_params": 5, "n_threads": 2, "n_prompt": %d, "n_gen": %d, "n_depth": %d%s})"
        "\n",
        side == "ALLOY" ? "ALLOY,CPU" : "CPU", n_prompt, n_gen, depth,
        is_short ? "" : (", \"avg_ts\": " + std::to_string(speed)).c_str());
    std::fflush(stdout);
}

} // namespace

int main(int argc, char ** argv) {
    if (fake::told_version(argc, argv)) return 0;
    const bool has_plugin = fake::has_plugin(argc, argv);
    const std::string side = has_plugin ? "ALLOY" : argument(argc, argv, "-fa", "on") == "on" ? "STOCK_ON" : "STOCK_OFF";
    const int start = starts_before(side);
    for (int i = 1; i < argc; i++) {
        if (std::strcmp(argv[i], "--nonsense") != 0 && (has_plugin || std::strcmp(argv[i], "ALLOY0") != 0)) continue;
        std::fprintf(stderr, "error: invalid parameter for argument: %s\n", argv[i]);
        return 1;
    }
    if (has_plugin && variable("FAKE_BENCH_IDLE") != "unloaded") {
        alloy::publish_counters(ggml_version(), "avx2");
        if (variable("FAKE_BENCH_IDLE").empty()) fake::count_some_work();
    }
    if (variable("FAKE_BENCH_FAIL") == side + " " + std::to_string(start)) {
        std::fprintf(stderr, "something went wrong with %s\n", argument(argc, argv, "-m", "").c_str());
        std::raise(SIGSEGV);
    }
    std::string memory(has_plugin ? 20 << 20 : 40 << 20, 'x'); // seen as anonymous memory
    std::this_thread::sleep_for(std::chrono::duration<double>(0.06 + std::atof(variable("FAKE_BENCH_SLEEP").c_str())));
    std::istringstream depths(argument(argc, argv, "-d", "0"));
    for (std::string depth; std::getline(depths, depth, ',');) {
        print_row(side, 512, 0, std::atoi(depth.c_str()), speed(side, start));
        if (argument(argc, argv, "-p", "") == "512,512")
            print_row(side, 512, 0, std::atoi(depth.c_str()), speed(side, start) / 2);
        print_row(side, 0, 64, std::atoi(depth.c_str()), speed(side, start) / 10);
    }
    return memory[5] == 'x' ? 0 : 1;
}
