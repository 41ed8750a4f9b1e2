// What kv_fuzz draws: contexts and operations on their memory, as data. Included by kv_fuzz.cpp only.
#pragma once
#include <ggml.h>
#include <llama.h>

#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <string>
#include <unistd.h>
#include <vector>

namespace alloy::test {
namespace {

// --- text ---------------------------------------------------------------------------------------------------------------------------
std::string text(const char * format, ...) __attribute__((format(printf, 1, 2)));
std::string text(const char * format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    return line;
}

std::mutex log_lock; // the host logs from other threads too
std::string recent_log;
int plugin_errors = 0;

void forget_recent_log() {
    std::lock_guard lock(log_lock);
    recent_log.clear();
}

void keep_recent_log(ggml_log_level level, const char * line, void *) {
    std::lock_guard lock(log_lock);
    if (level == GGML_LOG_LEVEL_ERROR && std::strstr(line, "ggml-alloy") != nullptr) plugin_errors++;
    if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) recent_log += line;
    if (recent_log.size() > 8000) recent_log.erase(0, 4000);
}

// What runs now, for a process that does not come back from it.
char running_now[512];
void tell_what_ran(int signal) {
    for (const char * part : {"\nkv_fuzz: killed in ", static_cast<const char *>(running_now), "\n"}) {
        if (write(STDOUT_FILENO, part, std::strlen(part)) < 0) break;
    }
    std::signal(signal, SIG_DFL);
    std::raise(signal);
}

// --- what is drawn ------------------------------------------------------------------------------------------------------------------
bool kernels_are_off() {
    const char * kernels = std::getenv("GGML_ALLOY_KERNELS");
    return kernels != nullptr && std::strcmp(kernels, "off") == 0;
}

struct settings {
    std::string model;
    int64_t sequences = 1000, per_group = 25, only_group = -1;
    uint64_t seed = 1;
    double tolerance = -1; // exact: largest |difference| / largest |logit| of f16 and f32 caches; lossy: 1 - cosine
    bool lossy = false, reduce = false, talk = false;
    std::vector<size_t> only_ops;

    bool bit_equal() const { return kernels_are_off() && !lossy; }
};

struct dice {
    std::mt19937_64 engine;

    explicit dice(uint64_t seed, uint64_t stream = 0) : engine(seed * 0x9E3779B97F4A7C15ull + stream) { engine.discard(8); }
    int pick(int low, int high) { return low + static_cast<int>(engine() % static_cast<uint64_t>(high - low + 1)); }
    double share() { return static_cast<double>(engine() >> 11) * 0x1p-53; }
    bool chance(double p) { return share() < p; }
    template <class T, size_t n> T one_of(const T (&choices)[n]) { return choices[pick(0, n - 1)]; }
};

enum class act {
    start, decode, batch, coupled, wrong, abort, remove, copy, keep, shift, save, restore, save_all, restore_all, checkpoint, clear, count
};
constexpr struct {
    const char * name;
    int weight; // how often it is drawn
} acts[] = {{"start", 0}, {"decode", 36},     {"batch", 20}, {"coupled", 2}, {"wrong batch", 2}, {"abort", 2},
            {"remove", 11}, {"copy", 7},     {"keep", 2},   {"shift", 6},   {"save", 7},        {"restore", 8},
            {"save all", 2}, {"restore all", 2}, {"checkpoint", 3}, {"clear", 3}};
static_assert(std::size(acts) == static_cast<size_t>(act::count));

struct op {
    act what = act::start;
    int sequence = 0;      // of operations, for reports
    int a = 0, b = 0;      // sequence ids, taken modulo their number
    double x = 0, y = 0;   // shares of a sequence's length
    int n = 1;             // tokens
    uint64_t seed = 0;     // of everything else
};

struct group {
    uint64_t seed, number;
    llama_context_params context;
    std::vector<op> ops;

    bool streams() const { return !context.kv_unified && context.n_seq_max > 1; }
    std::string describe() const {
        return text("group %llu: n_ctx %u, n_ubatch %u, %u sequences%s, K %s, V %s, flash attention %s, %d threads",
                    static_cast<unsigned long long>(number), context.n_ctx, context.n_ubatch, context.n_seq_max,
                    streams() ? " in streams" : "",
                    ggml_type_name(context.type_k), ggml_type_name(context.type_v),
                    context.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_ENABLED ? "on" : "off", context.n_threads);
    }
};

bool is_aborted = false;

llama_context_params a_context(dice & d) {
    llama_context_params p = llama_context_default_params();
    p.n_seq_max = static_cast<uint32_t>(d.one_of({1, 2, 2, 4}));
    p.kv_unified = d.chance(0.5);
    p.n_ctx = static_cast<uint32_t>(d.one_of({256, 512, 1024, 2048}));
    p.n_batch = 512;
    p.n_ubatch = static_cast<uint32_t>(d.one_of({32, 64, 128, 512}));
    p.n_threads = p.n_threads_batch = d.chance(0.15) ? 2 : 1;
    const ggml_type rare = d.one_of({GGML_TYPE_F32, GGML_TYPE_BF16, GGML_TYPE_Q8_0});
    p.type_k = d.chance(0.7) ? GGML_TYPE_F16 : rare;
    p.type_v = d.chance(0.05) ? GGML_TYPE_F16 : p.type_k;
    p.flash_attn_type = ggml_is_quantized(p.type_v) || d.chance(0.88) ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    p.no_perf = true;
    p.abort_callback = [](void *) { return is_aborted; };
    return p;
}

// `long_prompts`: more of them, so that pages fill up and are compressed.
op an_op(dice & d, int sequence, bool long_prompts) {
    int total = 0;
    for (const auto & a : acts) total += a.weight;
    int left = d.pick(0, total - 1);
    size_t what = 0;
    while (left >= acts[what].weight) left -= acts[what++].weight;
    const double share = d.share(), length = long_prompts ? std::sqrt(share) : share;
    const int n = length < 0.45 ? 1 : length < 0.7 ? d.pick(2, 8) : length < 0.9 ? d.pick(9, 64) : d.pick(65, 200);
    return {static_cast<act>(what), sequence, d.pick(0, 63), d.pick(0, 63), d.share(), d.share(), n, d.engine()};
}

group a_group(const settings & s, uint64_t number) {
    dice d(s.seed, number);
    group g{s.seed, number, a_context(d), {}};
    const int64_t first = static_cast<int64_t>(number) * s.per_group, last = std::min(s.sequences, first + s.per_group);
    for (int64_t i = first; i < (s.only_group >= 0 ? first + s.per_group : last); i++) {
        g.ops.push_back(an_op(d, static_cast<int>(i), s.lossy));
        g.ops.back().what = act::start;
        for (int count = d.pick(6, 14); count > 0; count--) g.ops.push_back(an_op(d, static_cast<int>(i), s.lossy));
    }
    return g;
}

} // namespace
} // namespace alloy::test
