// A llama-perplexity with known figures. FAKE_PPL_KLD is the mean KLD of a side with the plugin (0.0001 otherwise).
// FAKE_PPL_FAIL=KV crashes under that value of GGML_ALLOY_KV, FAKE_PPL_SHORT=1 leaves out a figure. Starts are counted by lines
// in FAKE_PPL_LOG.
#include "base/counters.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

namespace {

std::string variable(const char * name) {
    const char * value = std::getenv(name);
    return value != nullptr ? value : "";
}

} // namespace

int main(int argc, char ** argv) {
    std::string base;
    bool compares = false;
    for (int i = 1; i < argc; i++) {
        compares = compares || std::strcmp(argv[i], "--kl-divergence") == 0;
        if (std::strcmp(argv[i], "--kl-divergence-base") == 0 && i + 1 < argc) base = argv[i + 1];
    }
    const bool has_plugin = !variable("GGML_BACKEND_PATH").empty();
    const std::string kv = variable("GGML_ALLOY_KV");
    std::ofstream(variable("FAKE_PPL_LOG"), std::ios::app) << (has_plugin ? kv : compares ? "floor" : "base") << '\n';
    if (has_plugin) {
        alloy::publish_counters("0.0.1-fake", "avx2");
        alloy::count(alloy::counter::graphs, 1);
        alloy::count(alloy::counter::kernel_steps, 1);
        alloy::count(alloy::counter::kv_sealed_pages, 7);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(40));
    if (has_plugin && variable("FAKE_PPL_FAIL") == kv) std::raise(SIGABRT);
    if (!compares) {
        std::ofstream(base) << "_logits_";
        std::fputs("0.08.689 I Final estimate: PPL = 20.0000 +/- 0.50000\n", stderr);
        return 0;
    }
    if (!std::ifstream(base)) return 1;
    const double kld = has_plugin ? std::atof(variable("FAKE_PPL_KLD").c_str()) : 0.0001;
    std::printf("Mean PPL(Q)                   :  %f ±  0.500000\nMean PPL(base)                :  20.010000 ±  0.500000\n",
                has_plugin ? 20.02 : 20.0);
    std::printf("Mean PPL(Q)/PPL(base)         :   1.001000 ±   %s\n", has_plugin ? "0.000500" : "0.000300");
    std::printf("\n====== KL divergence statistics ======\nMean    KLD:  %f ±   0.000010\nMaximum KLD:   0.500000\n", kld);
    if (variable("FAKE_PPL_SHORT").empty()) std::printf("99.0%%   KLD:   0.008000\n");
    std::printf("Same top p: %s ± 0.100 %%\n", has_plugin ? "99.600" : "100.000");
    return 0;
}
