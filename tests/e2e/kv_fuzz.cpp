// kv_fuzz --model FILE [--sequences N] [--seed S] ..: what a program may do with llama.cpp's memory, in random order, on two contexts at
// once: the model on ALLOY0, and the same file on the CPU alone. After each call both have returned the same; after each decode logits
// agree; saved states agree in size, and wherever no arithmetic of ours is in them byte for byte.
//
// Sequences of operations are drawn in groups that share a pair of contexts. An operation is data that is drawn before anything runs and
// means something in any state, so a group is replayed by its number and can be reduced by leaving operations out.
#include "support/scene_cases.h"

#ifndef ALLOY_HOST_HEADERS
int main() { return alloy::test::without_headers(); }
#else
#include "kv_fuzz_player.h"

#include <functional>

namespace alloy::test {
namespace {

// --- groups -------------------------------------------------------------------------------------------------------------------------
struct models {
    llama_model *stock = nullptr, *ours = nullptr;
};

struct outcome {
    std::string problem;
    std::vector<std::string> history;
    size_t last; // operation that ran
};

outcome play(const settings & s, const group & g, const std::vector<size_t> & chosen, const models & m, totals & t) {
    plugin_errors = 0;
    player p(s, g, m.stock, m.ours, t);
    size_t last = 0;
    for (const size_t i : chosen) {
        last = i;
        if (!p.play(g.ops[i], i)) break;
    }
    return {p.problem, p.history, last};
}

// Leaves out whatever the failure does not need.
std::vector<size_t> reduced(const settings & s, const group & g, std::vector<size_t> chosen, const models & m) {
    for (size_t part = chosen.size() / 2; part > 0; part = part > 1 ? (part + 1) / 2 : 0) {
        for (size_t at = 0; at < chosen.size();) {
            std::vector<size_t> fewer(chosen.begin(), chosen.begin() + static_cast<std::ptrdiff_t>(at));
            if (at + part < chosen.size()) fewer.insert(fewer.end(), chosen.begin() + static_cast<std::ptrdiff_t>(at + part), chosen.end());
            totals ignored;
            const bool still_fails = fewer.size() < chosen.size() && !play(s, g, fewer, m, ignored).problem.empty();
            if (still_fails) chosen = fewer;
            else at += part;
        }
    }
    return chosen;
}

bool run_group(const settings & s, uint64_t number, const models & m, totals & t) {
    const group g = a_group(s, number);
    std::vector<size_t> chosen = s.only_ops;
    for (size_t i = 0; i < g.ops.size() && s.only_ops.empty(); i++) chosen.push_back(i);
    chosen.erase(std::remove_if(chosen.begin(), chosen.end(), [&](size_t i) { return i >= g.ops.size(); }), chosen.end());
    outcome o = play(s, g, chosen, m, t);
    if (o.problem.empty() && !s.talk) return true;
    std::string again = text("--seed %llu --group %llu", static_cast<unsigned long long>(s.seed), static_cast<unsigned long long>(number));
    size_t from = 0; // shown: the sequence that failed, and all before it since memory was last cleared
    if (!o.problem.empty() && s.reduce) {
        while (!chosen.empty() && chosen.back() > o.last) chosen.pop_back();
        chosen = reduced(s, g, chosen, m);
        totals ignored;
        o = play(s, g, chosen, m, ignored);
        for (size_t i = 0; i < chosen.size(); i++) again += (i == 0 ? " --ops " : ",") + std::to_string(chosen[i]);
    } else if (!s.talk) {
        for (size_t i = 0; i < o.history.size(); i++) {
            if (o.history[i].ends_with("with data")) from = i;
        }
    }
    std::printf("\n%s\n", g.describe().c_str());
    for (size_t i = from; i < o.history.size(); i++) std::printf("  %s\n", o.history[i].c_str());
    if (o.problem.empty()) return true;
    std::printf("  FAILED: %s\n%s  again: %s%s\n", o.problem.c_str(), recent_log.c_str(), again.c_str(),
                s.reduce ? "" : " (and --reduce for the operations that matter)");
    return false;
}

// --- the program --------------------------------------------------------------------------------------------------------------------
models load(const settings & s) {
    ggml_backend_dev_t ours[] = {ggml_backend_dev_by_name("ALLOY0"), nullptr}, none[] = {nullptr};
    llama_model_params p = llama_model_default_params();
    models m;
    p.devices = ours;
    if (ours[0] != nullptr) m.ours = llama_model_load_from_file(s.model.c_str(), p);
    p.devices = none;
    p.n_gpu_layers = 0;
    m.stock = llama_model_load_from_file(s.model.c_str(), p);
    return m;
}

bool report(const settings & s, const totals & t) {
    std::printf("%lld sequences, %lld tokens, %lld rows of logits and %lld states compared\n", static_cast<long long>(t.sequences),
                static_cast<long long>(t.tokens), static_cast<long long>(t.rows), static_cast<long long>(t.states));
    for (size_t i = 1; i < t.ops.size(); i++) std::printf("%s%s %lld", i > 1 ? ", " : "", acts[i].name, static_cast<long long>(t.ops[i]));
    std::printf("\ndecode returned");
    for (const auto & [status, count] : t.statuses) std::printf(" %d: %lld", status, static_cast<long long>(count));
    std::printf("\nlargest %s\n", s.lossy ? "1 - cosine" : "|difference| / largest |logit|");
    for (const auto & [cache, deviation] : t.worst) std::printf("  %-36s %.3g\n", cache.c_str(), deviation);
    for (const char * name : {"graphs", "plans_built", "plans_reused", "kernel_steps", "delegated_nodes", "failed_graphs", "aborted_graphs",
                              "refused_accesses", "kv_bytes", "kv_live_bytes", "kv_sealed_pages", "kv_unsealed_pages", "kv_plain_caches"}) {
        if (const int64_t value = counter_of(name); value >= 0) std::printf("%s %lld  ", name, static_cast<long long>(value));
    }
    std::puts("");
    bool good = true;
    auto require = [&](bool holds, const char * what) {
        if (!holds) std::printf("FAILED: %s\n", what);
        good = good && holds;
    };
    require(t.rows > 0, "nothing was compared");
    require(counter_of("graphs") > 0, "the plugin took no part");
    require((counter_of("kernel_steps") > 0) == !kernels_are_off(), "kernels did not run as GGML_ALLOY_KERNELS says");
    require(counter_of("failed_graphs") == 0 && counter_of("refused_accesses") == 0, "a graph failed, or an access was refused");
    require(counter_of("kv_bytes") == 0 && counter_of("kv_live_bytes") <= 0, "bytes of caches are still counted after all are gone");
    if (s.lossy && t.sequences >= 100) require(counter_of("kv_sealed_pages") > 0, "no page was sealed");
    return good;
}

bool read_arguments(settings & s, int argc, char ** argv) {
    const std::map<std::string, std::function<void(const char *)>> with_value = {
        {"--model", [&](const char * v) { s.model = v; }},
        {"--sequences", [&](const char * v) { s.sequences = std::atoll(v); }},
        {"--seed", [&](const char * v) { s.seed = std::strtoull(v, nullptr, 10); }},
        {"--group", [&](const char * v) { s.only_group = std::atoll(v); }},
        {"--kv-tolerance", [&](const char * v) { s.tolerance = std::atof(v); }},
        {"--ops", [&](const char * v) {
             for (char * end = nullptr; *v != 0; v = *end != 0 ? end + 1 : end) s.only_ops.push_back(std::strtoull(v, &end, 10));
         }},
    };
    const std::map<std::string, bool *> flags = {{"--lossy", &s.lossy}, {"--reduce", &s.reduce}, {"--talk", &s.talk}};
    for (int i = 1; i < argc; i++) {
        const auto value = with_value.find(argv[i]);
        const auto flag = flags.find(argv[i]);
        if (value != with_value.end() && i + 1 < argc) value->second(argv[++i]);
        else if (flag != flags.end()) *flag->second = true;
        else return false;
    }
    if (s.tolerance < 0) s.tolerance = s.lossy ? 0.1 : 2e-3;
    return !s.model.empty();
}

int run(const settings & s) {
    llama_log_set(keep_recent_log, nullptr);
    setenv("OMP_WAIT_POLICY", "passive", 0);
    ggml_backend_load_all_from_path(std::getenv("ALLOY_HOST_BIN"));
    llama_backend_init();
    const models m = load(s);
    if (m.stock == nullptr || m.ours == nullptr) {
        std::printf("%s\n%s is not loaded %s\n", recent_log.c_str(), s.model.c_str(), m.stock == nullptr ? "by stock" : "on ALLOY0");
        return 1;
    }
    if (s.lossy && counter_of("kv_sealed_pages") < 0) return without_host("this plugin does not compress caches");
    for (const int signal : {SIGSEGV, SIGABRT, SIGBUS, SIGFPE}) std::signal(signal, tell_what_ran);
    std::printf("seed %llu, %lld sequences%s\n", static_cast<unsigned long long>(s.seed), static_cast<long long>(s.sequences),
                s.bit_equal() ? ", bit for bit" : s.lossy ? ", lossy" : "");
    std::fflush(stdout);
    totals t;
    int failed = 0;
    const int64_t groups = (s.sequences + s.per_group - 1) / s.per_group;
    for (int64_t g = 0; g < groups && failed < 3; g++) {
        if (s.only_group >= 0) g = s.only_group;
        failed += !run_group(s, static_cast<uint64_t>(g), m, t);
        std::fflush(stdout);
        if (s.only_group >= 0) break;
    }
    const bool good = report(s, t) && failed == 0;
    llama_model_free(m.stock);
    llama_model_free(m.ours);
    return good ? 0 : 1;
}

} // namespace
} // namespace alloy::test

int main(int argc, char ** argv) {
    using namespace alloy::test;
    settings s;
    if (!read_arguments(s, argc, argv)) {
        std::fprintf(stderr, "usage: kv_fuzz --model FILE [--sequences N] [--seed S] [--lossy] [--kv-tolerance X]\n"
                             "               [--group G [--ops N,N..]] [--reduce] [--talk]\n");
        return 2;
    }
    const char *host = std::getenv("ALLOY_HOST_BIN"), *plugin = std::getenv("ALLOY_PLUGIN");
    if (host == nullptr || *host == 0 || plugin == nullptr) {
        return without_host("ALLOY_HOST_BIN and ALLOY_PLUGIN must name the folder of the host's programs and the plugin");
    }
    setenv("GGML_BACKEND_PATH", plugin, 1);
    return run(s);
}
#endif
