// A program that loads the plugin as ggml's loader does and says what happened. Arguments: PLUGIN [version=V] [api=N] [renamed=OP]
// [overhead=N] [calls=N]. Prints the score, whether init gave a registry, the device count, and the log.
#include "fake_ggml.h"

#include <cstdio>
#include <cstring>
#include <string>

#include <dlfcn.h>

using alloy::host::registry;

int main(int argc, char ** argv) {
    if (argc < 2) return 2;
    int calls = 1;
    for (int i = 2; i < argc; i++) {
        const std::string argument = argv[i];
        const size_t equals = argument.find('=');
        const std::string key = argument.substr(0, equals), value = argument.substr(equals + 1);
        if (key == "version") fake::state().version = value;
        else if (key == "api") fake::state().api_version = std::stoi(value);
        else if (key == "renamed") fake::state().renamed_op = value;
        else if (key == "overhead") fake::state().tensor_overhead = std::stoul(value);
        else if (key == "calls") calls = std::stoi(value);
        else return 2;
    }
    void * plugin = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (plugin == nullptr) {
        std::printf("dlopen failed: %s\n", dlerror());
        return 1;
    }
    auto score = reinterpret_cast<int (*)()>(dlsym(plugin, "ggml_backend_score"));
    auto init = reinterpret_cast<registry * (*)()>(dlsym(plugin, "ggml_backend_init"));
    registry * first = nullptr;
    for (int i = 0; i < calls; i++) {
        const int points = score();
        registry * reg = init();
        if (i == 0) first = reg;
        std::printf("score %d registry %s same %d\n", points, reg ? reg->iface.get_name(reg) : "none", reg == first);
        if (reg != nullptr) {
            alloy::host::device * device = reg->iface.get_device(reg, 0);
            std::printf("devices %zu name %s type %d\n", reg->iface.get_device_count(reg), device->iface.get_name(device), device->iface.get_type(device));
        }
    }
    for (const std::string & line : fake::state().log) std::printf("log %s", line.c_str());
    return 0;
}
