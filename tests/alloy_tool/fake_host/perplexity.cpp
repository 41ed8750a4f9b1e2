// A llama-perplexity with known figures. FAKE_PPL_KLD is the mean KLD of a side with the plugin, FAKE_PPL_STOCK_KLD that of stock
// with a quantised cache (0.0001 otherwise).
// FAKE_PPL_FAIL=KV crashes under that value of GGML_ALLOY_KV, FAKE_PPL_SHORT=1 leaves out a figure. Starts are counted by lines
// in FAKE_PPL_LOG.
#include "host_side.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

using fake::variable;

int main(int argc, char ** argv) {
    std::string base;
    bool compares = false;
    for (int i = 1; i < argc; i++) {
        compares = compares || std::strcmp(argv[i], "--kl-divergence") == 0;
        if (std::strcmp(argv[i], "--kl-divergence-base") == 0 && i + 1 < argc) base = argv[i + 1];
    }
    if (fake::told_version(argc, argv)) return 0;
    const bool has_plugin = fake::has_plugin(argc, argv);
    const std::string kv = variable("GGML_ALLOY_KV"), cache = fake::argument(argc, argv, "-ctk", "");
    std::ofstream(variable("FAKE_PPL_LOG"), std::ios::app) << (has_plugin       ? kv
                                                               : !cache.empty() ? "stock-" + cache
                                                               : compares       ? "floor"
                                                                                : "base")
                                                           << '\n';
    if (has_plugin) fake::count_some_work();
    std::this_thread::sleep_for(std::chrono::milliseconds(40));
    if (has_plugin && variable("FAKE_PPL_FAIL") == kv) std::raise(SIGABRT);
    if (!compares) {
        std::ofstream(base) << "_logits_";
        std::fputs("0.08.689 I Final estimate: PPL = 20.0000 +/- 0.50000\n", stderr);
        return 0;
    }
    if (!std::ifstream(base)) return 1;
    const double kld = std::atof((has_plugin      ? variable("FAKE_PPL_KLD")
                                  : cache.empty() ? "0.0001"
                                                  : variable("FAKE_PPL_STOCK_KLD"))
                                     .c_str());
    std::printf("Mean PPL(Q)                   :  %f ±  0.500000\nMean PPL(base)                :  20.010000 ±  0.500000\n",
                has_plugin ? 20.02 : 20.0);
    std::printf("Mean PPL(Q)/PPL(base)         :   1.001000 ±   %s\n", has_plugin ? "0.000500" : "0.000300");
    std::printf("\n====== KL divergence statistics ======\nMean    KLD:  %f ±   0.000010\nMaximum KLD:   0.500000\n", kld);
    if (variable("FAKE_PPL_SHORT").empty()) std::printf("99.0%%   KLD:   0.008000\n");
    std::printf("Same top p: %s ± 0.100 %%\n", has_plugin ? "99.600" : "100.000");
    return 0;
}
