// A program that runs many scenes: kinds of cases, all of them or `--case N`. Deterministic from ALLOY_TEST_SEED; case N is the same graph
// whether it runs alone or among the others.
#pragma once
#include <cstdio>
#include <cstdlib>

namespace alloy::test {

// Skipped, or failed where the host is required.
inline int without_host(const char * why) {
    std::puts(why);
    const char * required = std::getenv("ALLOY_E2E_REQUIRED");
    return required != nullptr && *required == '1' ? 1 : 77;
}
inline int without_headers() {
    return without_host("built without ALLOY_HOST_SOURCE and ALLOY_HOST_BIN (tools/setup/host.sh makes both)");
}

} // namespace alloy::test

#ifdef ALLOY_HOST_HEADERS
#include "support/host_scene.h"
#include "support/values.h"

#include <filesystem>
#include <span>
#include <string>

namespace alloy::test {

struct kind_of_case {
    const char * name;
    void (*make)(scene &, int64_t); // the number counts within the kind
    int64_t cases;
};

struct case_program {
    const char * name;
    std::span<const kind_of_case> kinds;
    bool (*prepare)(device &);                           // may be null; false: failed
    bool (*check_totals)(const device &, bool whole);    // after the cases, all of them if `whole`
};

// True: passed.
inline bool run_case(const case_program & p, const device & d, const kind_of_case & kind, int64_t index, uint64_t number, bool talk) {
    forget_log();
    scene s(d, seed(), number);
    kind.make(s, index);
    if (log_has_errors()) s.fail("the log has errors");
    const auto shown = static_cast<unsigned long long>(number);
    if (talk || !s.problem.empty()) std::printf("case %llu, %s: %s\n", shown, kind.name, s.description.c_str());
    if (s.problem.empty()) return true;
    std::printf("  FAILED: %s\n%s  again: ALLOY_TEST_SEED=%llu %s --case %llu\n", s.problem.c_str(), log_text().c_str(),
                static_cast<unsigned long long>(seed()), p.name, shown);
    return false;
}

// Every case, or case `only`; true: all passed.
inline bool run_cases(const case_program & p, device & d, int64_t only) {
    bool good = p.prepare == nullptr || p.prepare(d);
    uint64_t number = 0;
    int64_t all = 0, all_passed = 0;
    std::string table;
    for (const kind_of_case & kind : p.kinds) {
        int64_t ran = 0, passed = 0;
        for (int64_t i = 0; i < kind.cases; i++, number++) {
            if (only >= 0 && number != static_cast<uint64_t>(only)) continue;
            ran++;
            passed += run_case(p, d, kind, i, number, only >= 0);
        }
        char line[80];
        std::snprintf(line, sizeof(line), "%-20s%8lld%8lld\n", kind.name, static_cast<long long>(ran), static_cast<long long>(passed));
        if (ran > 0) table += line;
        all += ran;
        all_passed += passed;
    }
    std::printf("\n%-20s%8s%8s\n%s%-20s%8lld%8lld\n", "kind", "cases", "passed", table.c_str(), "all", static_cast<long long>(all),
                static_cast<long long>(all_passed));
    if (all == 0) std::puts("FAILED: no case");
    good = p.check_totals(d, only < 0) && good;
    return good && all > 0 && all_passed == all;
}

// What a program returns that does `work` on the device of the plugin and the host that the environment names. The work says whether it was good.
inline int on_device(const std::function<bool(device &)> & work) {
    const char *host = std::getenv("ALLOY_HOST_BIN"), *plugin = std::getenv("ALLOY_PLUGIN");
    if (host == nullptr || *host == 0 || plugin == nullptr) {
        return without_host("ALLOY_HOST_BIN and ALLOY_PLUGIN must name the folder of the host's programs and the plugin");
    }
    setenv("GGML_BACKEND_PATH", plugin, 1);
    char folder[] = "/tmp/alloy-cases-XXXXXX";
    if (mkdtemp(folder) == nullptr) return 1;
    bool good = false;
    {
        device d;
        const std::string missing = d.open(host, folder);
        if (missing.empty()) good = work(d);
        else std::printf("%s\n", missing.c_str());
    }
    std::filesystem::remove_all(folder);
    return good ? 0 : 1;
}

inline int run_program(const case_program & p, int argc, char ** argv) {
    const bool one = argc == 3 && std::string(argv[1]) == "--case";
    if (argc > 1 && !one) {
        std::fprintf(stderr, "usage: %s [--case N]\n", p.name);
        return 2;
    }
    return on_device([&](device & d) { return run_cases(p, d, one ? std::atoll(argv[2]) : -1); });
}

} // namespace alloy::test
#endif
