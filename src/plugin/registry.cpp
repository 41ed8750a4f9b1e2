// The registry and its one device.
#include "plugin/plugin.h"

#include "base/os.h"
#include "graph/claims.h"
#include "graph/memory.h"
#include "host/symbols.h"

namespace alloy::plugin {
namespace {

using host::device;
using host::registry;

// --- device -------------------------------------------------------------------------------------------------------------------------

const char * device_get_name(device *) { return device_name; }
const char * device_description(device *) { return "ggml-alloy " ALLOY_VERSION " (CPU)"; }

// As the host's CPU device does: free = total. --fit then plans with us as it would without us.
void device_memory(device *, size_t * free, size_t * total) { *free = *total = os::total_memory(); }

// IGPU gets every layer by default without a flag, in one scheduler split with flash attention on, and stands aside for a real GPU.
int device_get_type(device *) { return host::device_igpu; }

void device_props(device * d, host::device_props * props) {
    *props = {};
    props->name = device_get_name(d);
    props->description = device_description(d);
    device_memory(d, &props->memory_free, &props->memory_total);
    props->type = device_get_type(d);
    // All others off: async + host_buffer + events would cut uploads into pieces, buffer_from_host_ptr would bypass set_tensor.
    props->caps.mmap_support = true;
}

host::backend * device_init_backend(device *, const char *) { return make_backend(); }
host::buffer_type * device_buffer_type(device *) { return the_buffer_type(); }

bool device_supports_op(device *, const host::tensor * node) {
    try {
        return graph::claims(node);
    } catch (...) {
        return false;
    }
}

bool device_supports_buft(device *, host::buffer_type * type) { return type == the_buffer_type() || host::api().ggml_backend_buft_is_host(type); }

// --- registry -----------------------------------------------------------------------------------------------------------------------

const char * registry_get_name(registry *) { return registry_name; }
size_t registry_device_count(registry *) { return 1; }
device * registry_device(registry *, size_t index) { return index == 0 ? the_device() : nullptr; }
void * registry_proc(registry *, const char * name) { return proc_address(name); }

} // namespace

registry * the_registry() {
    static registry reg = {
        .api_version = host::api_version,
        .iface = {.get_name = registry_get_name,
                  .get_device_count = registry_device_count,
                  .get_device = registry_device,
                  .get_proc_address = registry_proc},
        .context = nullptr,
    };
    return &reg;
}

device * the_device() {
    static device dev = {
        .iface = {.get_name = device_get_name,
                  .get_description = device_description,
                  .get_memory = device_memory,
                  .get_type = device_get_type,
                  .get_props = device_props,
                  .init_backend = device_init_backend,
                  .get_buffer_type = device_buffer_type,
                  .get_host_buffer_type = nullptr, // a host buffer type would stand before the host's repacking one
                  .buffer_from_host_ptr = nullptr,
                  .supports_op = device_supports_op,
                  .supports_buft = device_supports_buft,
                  .offload_op = nullptr,
                  .event_new = nullptr,
                  .event_free = nullptr,
                  .event_synchronize = nullptr},
        .reg = the_registry(),
        .context = nullptr,
    };
    return &dev;
}

} // namespace alloy::plugin
