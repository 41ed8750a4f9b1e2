#include "plugin/plugin.h"

#include "base/counters.h"
#include "base/isa.h"
#include "base/log.h"
#include "base/options.h"
#include "base/os.h"
#include "host/cpu.h"
#include "host/ops.h"
#include "host/symbols.h"

#include <cstring>
#include <mutex>

namespace alloy::plugin {
namespace {

// The ggml versions whose structs are those of host/abi_v3.h, as tests/abi_test.cpp has compared them.
constexpr const char * tested_versions[] = {"0.26.0"};

void to_host_log(log_level level, const char * line) { host::api().ggml_log_internal(static_cast<int>(level), "%s", line); }

bool is_tested(const char * version) {
    for (const char * tested : tested_versions) {
        if (std::strcmp(version, tested) == 0) return true;
    }
    return false;
}

std::string tested_list() {
    std::string list;
    for (const char * tested : tested_versions) list += (list.empty() ? "" : ", ") + std::string(tested);
    return list;
}

#define REFUSE(...)             \
    do {                        \
        ALLOY_ERROR(__VA_ARGS__); \
        return false;           \
    } while (0)

bool check_host(const void * caller) {
    std::string missing;
    if (!host::resolve_symbols(caller, missing)) {
        REFUSE("this host does not export %s; made for ggml %s (llama.cpp b11434); the host goes on without us", missing.c_str(),
               tested_list().c_str());
    }
    const char * version = host::api().ggml_version();
    if (version == nullptr || !is_tested(version)) {
        REFUSE("host has ggml %s, this plugin (%s) is made for ggml %s; the host goes on without us", version ? version : "?",
               ALLOY_VERSION, tested_list().c_str());
    }
    set_log_sink(to_host_log);
    // The first field of every registry since the first API version.
    if (host::device * cpu = host::cpu_device()) {
        const int api = host::api().ggml_backend_dev_backend_reg(cpu)->api_version;
        if (api != host::api_version) {
            REFUSE("host ggml %s speaks backend API %d, this plugin (%s) speaks %d; the host goes on without us", version, api,
                   ALLOY_VERSION, host::api_version);
        }
    }
    if (host::api().ggml_tensor_overhead() != host::object_bytes + sizeof(host::tensor)) {
        REFUSE("host ggml %s has tensors of %zu bytes, expected %zu; the host goes on without us", version,
               host::api().ggml_tensor_overhead() - host::object_bytes, sizeof(host::tensor));
    }
    if (!host::resolve_ops(missing)) {
        REFUSE("host ggml %s has no operation %s, which ggml %s has; the host goes on without us", version, missing.c_str(),
               tested_list().c_str());
    }
    return true;
}

bool check_process(const void * caller) {
    std::string complaint;
    if (!read_options(complaint)) REFUSE("%s; the host goes on without us", complaint.c_str());
    if (!is_on(option::alloy)) return false;
    const isa_set cpu = isa_of_cpu();
    if (!isa_has(cpu, isa::avx2) && !isa_has(cpu, isa::neon)) {
        REFUSE("this CPU has neither AVX2 nor NEON; the host goes on without us");
    }
    isa_set allowed = cpu;
    if (text_of(option::isa) != "best" && (!isa_limited_to(text_of(option::isa), cpu, allowed) || allowed == 0)) {
        REFUSE("GGML_ALLOY_ISA: got '%s', this CPU has %s; the host goes on without us", text_of(option::isa).c_str(), isa_list(cpu).c_str());
    }
    set_isa_allowed(allowed);
    // Attacker-made graphs reach every device of an RPC server.
    if (os::program_name().find("rpc-server") != std::string::npos && !is_on(option::rpc)) {
        REFUSE("not offered under rpc-server (GGML_ALLOY_RPC=1 allows it)");
    }
    if (!check_host(caller)) return false;
    if (is_on(option::counters)) publish_counters(host::api().ggml_version(), isa_list(allowed));
    for (int op = 0; op < host::op_count; op++) std::strncpy(counters().op_names[op], host::api().ggml_op_name(op), 23);
    return true;
}

} // namespace

bool handshake(const void * caller) {
    static std::mutex once;
    static int answer = -1;
    std::lock_guard lock(once);
    if (answer < 0) answer = check_process(caller) ? 1 : 0;
    return answer == 1;
}

} // namespace alloy::plugin
