#include "verdict.h"

#include "host/abi_v3.h"

#include <algorithm>
#include <cstdlib>
#include <optional>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

// The plugin's own line if there is one, else what the host said about the file.
std::string refusal_line(const probe_result & probe, const std::string & plugin) {
    const std::string mark = "ggml-alloy: ";
    for (const std::string & line : probe.log) {
        if (line.rfind(mark, 0) == 0) return line.substr(mark.size());
    }
    for (const std::string & line : probe.log) {
        if (line.find(plugin) != std::string::npos) return line;
    }
    return "the host did not load the plugin and printed no reason";
}

// llama.cpp uses every GPU; integrated ones only where there is no other, and of those only the first registry's.
const probed_device * preferred_device(const probe_result & probe) {
    const probed_device * alloy = probe.alloy();
    for (const probed_device & device : probe.devices) {
        if (alloy->type == host::device_igpu && device.type == host::device_gpu) return &device;
    }
    for (const probed_device & device : probe.devices) {
        if (&device == alloy) break;
        if (alloy->type == host::device_igpu && device.type == host::device_igpu) return &device;
    }
    return nullptr;
}

std::optional<verdict> judge_knobs(const std::vector<knob> & knobs) {
    for (const knob & k : knobs) {
        if (!k.complaint.empty()) return verdict{outcome::wrong_knob, k.complaint};
    }
    if (!is_on(option::alloy)) return verdict{outcome::off, "GGML_ALLOY=off: the host runs as stock"};
    return {};
}

// The plugin sees alloy's name in the test process, so it cannot say this one itself.
bool is_rpc_server(const llama_host & target) {
    return std::all_of(target.programs.begin(), target.programs.end(),
                       [](const std::string & p) { return p.find("rpc-server") != std::string::npos; });
}

} // namespace

const char * name_of(outcome what) {
    switch (what) {
    case outcome::used: return "used";
    case outcome::used_when_named: return "used with -dev ALLOY0";
    case outcome::stands_aside: return "not used, stands aside";
    case outcome::other_devices: return "not used, other devices chosen";
    case outcome::off: return "not used, switched off";
    case outcome::wrong_knob: return "not used, wrong knob";
    case outcome::refused: return "not used, refused";
    case outcome::unsupported: return "not used, unsupported host";
    case outcome::failed: return "not used, host does not load";
    }
    return "?";
}

verdict judge(const llama_host & target, const probe_result & probe, const std::string & plugin,
              const std::vector<knob> & knobs) {
    if (target.style == link_style::fully_static)
        return {outcome::unsupported,
                "the program is linked statically, expected one built with shared libraries (BUILD_SHARED_LIBS=ON)"};
    if (const auto by_knobs = judge_knobs(knobs)) return *by_knobs;
    if (is_rpc_server(target) && !is_on(option::rpc))
        return {outcome::refused, "not offered under rpc-server, GGML_ALLOY_RPC=1 allows it"};
    if (!probe.failure.empty()) {
        const std::string also = target.missing.empty() ? "" : "; library not found: " + target.missing.front();
        return {outcome::failed, probe.failure + also};
    }
    if (probe.alloy() == nullptr) return {outcome::refused, refusal_line(probe, plugin)};
    const char * chosen = std::getenv("LLAMA_ARG_DEVICE"); // the environment's -dev
    if (chosen != nullptr && *chosen != 0) {
        if (std::string(chosen).find("ALLOY0") != std::string::npos)
            return {outcome::used, fmt::format("LLAMA_ARG_DEVICE={} names it", chosen)};
        return {outcome::other_devices,
                fmt::format("LLAMA_ARG_DEVICE={} chooses the devices, expected ALLOY0 among them", chosen)};
    }
    if (const probed_device * other = preferred_device(probe)) {
        return {outcome::stands_aside,
                fmt::format("{} '{}' is registered too and llama.cpp prefers it; -dev ALLOY0 asks for the plugin",
                            other->type == host::device_gpu ? "GPU" : "integrated GPU", other->name)};
    }
    if (target.style == link_style::linked_in)
        return {outcome::used_when_named,
                "the CPU backend is linked in, so the plugin is loaded when asked for: -dev ALLOY0 (`alloy run` adds it)"};
    return {outcome::used, "all layers go to ALLOY0 without a flag"};
}

} // namespace alloy::tool
