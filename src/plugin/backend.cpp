// The backend object: one graph::session each.
#include "plugin/plugin.h"

#include "base/isa.h"
#include "base/log.h"
#include "graph/session.h"
#include "plugin/c_api.h"
#include "host/symbols.h"

#include <cstring>
#include <exception>
#include <string>

namespace alloy::plugin {
namespace {

using graph::session;
using host::backend;

constexpr uint8_t guid[16] = {0x67, 0x67, 0x6d, 0x6c, 0x2d, 0x61, 0x6c, 0x6c, 0x6f, 0x79, 0x00, 0x9d, 0x31, 0x5c, 0xe2, 0x41};

session & session_of(backend * b) { return *static_cast<session *>(b->context); }

const char * get_name(backend *) { return device_name; }

void free_backend(backend * b) {
    delete &session_of(b);
    delete b;
}

int graph_compute(backend * b, host::graph * g) {
    try {
        return session_of(b).compute(*g);
    } catch (const std::exception & e) {
        ALLOY_ERROR("graph failed: %s", e.what());
    } catch (...) {
    }
    return host::status_failed;
}

// Steps keep the order of the nodes, so nothing needs to stay allocated longer than the host thinks.
void graph_optimize(backend *, host::graph *, host::optimize_params *) {}

void set_n_threads(backend * b, int n) { session_of(b).set_num_threads(n); }
void set_abort_callback(backend * b, host::abort_callback callback, void * user) { session_of(b).set_abort_callback(callback, user); }

constexpr host::backend_table backend_functions = {
    .get_name = get_name,
    .free = free_backend,
    .set_tensor_async = nullptr,
    .get_tensor_async = nullptr,
    .set_tensor_2d_async = nullptr,
    .get_tensor_2d_async = nullptr,
    .cpy_tensor_async = nullptr,
    .synchronize = nullptr,
    .graph_plan_create = nullptr,
    .graph_plan_free = nullptr,
    .graph_plan_update = nullptr,
    .graph_plan_compute = nullptr,
    .graph_compute = graph_compute,
    .event_record = nullptr,
    .event_wait = nullptr,
    .graph_optimize = graph_optimize,
};

// Shown by llama.cpp in its system_info line: the one place where a user sees at a glance that the plugin is in use.
host::feature * get_features(host::registry *) {
    static const std::string isas = isa_list(isa_allowed());
    static host::feature features[] = {{"VERSION", ALLOY_VERSION}, {"ISA", isas.c_str()}, {nullptr, nullptr}};
    return features;
}

} // namespace

void * proc_address(const char * name) {
    const struct {
        const char * name;
        void * function;
    } procs[] = {
        {"ggml_backend_set_n_threads", reinterpret_cast<void *>(set_n_threads)},
        {"ggml_backend_set_abort_callback", reinterpret_cast<void *>(set_abort_callback)},
        {"ggml_backend_get_features", reinterpret_cast<void *>(get_features)},
        {"ggml_alloy_get_api", reinterpret_cast<void *>(ggml_alloy_get_api)},
    };
    for (const auto & proc : procs) {
        if (std::strcmp(proc.name, name) == 0) return proc.function;
    }
    return nullptr;
}

backend * make_backend() {
    try {
        std::unique_ptr<session> s = session::make();
        if (s == nullptr) return nullptr;
        auto * b = new backend{guid, backend_functions, the_device(), s.get()};
        s.release();
        return b;
    } catch (...) {
        return nullptr;
    }
}

} // namespace alloy::plugin
