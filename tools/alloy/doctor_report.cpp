#include "doctor.h"

#include "host/abi_v3.h"

#include <filesystem>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace alloy::tool {
namespace {

using json = nlohmann::ordered_json;

constexpr double mebibyte = 1048576.0;

std::string type_name(int type) {
    switch (type) {
    case host::device_cpu: return "CPU";
    case host::device_gpu: return "GPU";
    case host::device_igpu: return "IGPU";
    case host::device_accel: return "ACCEL";
    }
    return fmt::format("type {}", type);
}

std::string program_names(const llama_host & target) {
    constexpr size_t most = 6;
    std::string text;
    for (size_t i = 0; i < target.programs.size() && i < most; i++)
        text += (i == 0 ? "" : ", ") + std::filesystem::path(target.programs[i]).filename().string();
    return target.programs.size() > most ? text + fmt::format(" and {} more", target.programs.size() - most) : text;
}

std::string host_text(const diagnosis::examined & host) {
    std::string devices;
    for (const probed_device & d : host.probe.devices)
        devices += fmt::format("{}{} ({})", devices.empty() ? "" : ", ", d.name, type_name(d.type));
    std::string text = fmt::format("host       {}: {}\n", host.target.folder, program_names(host.target));
    text += fmt::format("  ggml     {}, {}\n", host.probe.version.empty() ? "unknown version" : host.probe.version,
                        meaning_of(host.target.style));
    if (!devices.empty()) text += fmt::format("  devices  {}\n", devices);
    for (const std::string & missing : host.target.missing) text += fmt::format("  missing  {}\n", missing);
    text += fmt::format("  verdict  {}: {}\n", name_of(host.result.what), host.result.reason);
    if (host.result.what == outcome::failed) {
        const size_t last_lines = 5, count = host.probe.log.size();
        for (size_t i = count > last_lines ? count - last_lines : 0; i < count; i++)
            text += fmt::format("  said     {}\n", host.probe.log[i]);
    }
    return text + "\n";
}

std::string plugin_text(const diagnosis & found) {
    if (!found.plugin_complaint.empty()) return fmt::format("plugin     {}\n", found.plugin_complaint);
    const std::string line =
        fmt::format("plugin     {}, version {}\n", found.plugin, found.plugin_version.empty() ? "unknown" : found.plugin_version);
    if (found.backend_path == found.plugin) return line + "variable   GGML_BACKEND_PATH names it\n";
    if (!found.backend_path.empty())
        return line + fmt::format("variable   GGML_BACKEND_PATH is {}; `alloy run` replaces it\n", found.backend_path);
    return line + "variable   GGML_BACKEND_PATH is not set; `alloy run PROGRAM` sets it\n";
}

json host_json(const diagnosis::examined & host) {
    json devices = json::array();
    for (const probed_device & d : host.probe.devices)
        devices.push_back({{"name", d.name}, {"type", type_name(d.type)}, {"description", d.description}});
    return {{"folder", host.target.folder},
            {"programs", host.target.programs},
            {"ggml_version", host.probe.version},
            {"link_style", name_of(host.target.style)},
            {"libggml", host.target.libggml},
            {"devices", devices},
            {"missing_libraries", host.target.missing},
            {"used", host.result.is_good()},
            {"verdict", name_of(host.result.what)},
            {"reason", host.result.reason},
            {"log", host.probe.log}};
}

} // namespace

std::string report_text(const diagnosis & found) {
    std::string text = plugin_text(found);
    const machine & here = found.here;
    text += fmt::format("CPU        has {}; allowed {}\n", here.isa_found, here.isa_allowed);
    text += fmt::format("weights    kernels for {}; other types stay in the host's layout (`alloy status` counts both)\n",
                        here.packed_weights.empty() ? "none" : here.packed_weights);
    text += fmt::format("cores      {} usable of {} hardware threads\n", here.cores, here.cpus);
    text += fmt::format("memory     {:.0f} MiB, {:.0f} MiB available; transparent huge pages: {}\n\n",
                        static_cast<double>(here.total_memory) / mebibyte, static_cast<double>(here.available_memory) / mebibyte,
                        here.huge_pages);
    for (const auto & host : found.hosts) text += host_text(host);
    for (const std::string & complaint : found.complaints) text += fmt::format("host       {}\n\n", complaint);
    text += "knobs (* set, ! wrong)\n" + knobs_text(found.knobs);
    if (found.hosts.empty()) return text + "\nNo llama.cpp was found that could use the plugin.\n";
    return text + fmt::format("\n{}\n", found.is_good ? "The plugin would be used."
                                                      : "The plugin would not be used everywhere: see the verdicts above.");
}

std::string report_json(const diagnosis & found) {
    json hosts = json::array(), knobs = json::array();
    for (const auto & host : found.hosts) hosts.push_back(host_json(host));
    for (const knob & k : found.knobs) {
        knobs.push_back({{"variable", k.info->variable},
                         {"value", k.value},
                         {"set", k.is_set},
                         {"default", k.info->standard},
                         {"values", k.info->values},
                         {"help", k.info->help},
                         {"complaint", k.complaint}});
    }
    const machine & here = found.here;
    const json report = {
        {"good", found.is_good},
        {"plugin", {{"path", found.plugin}, {"version", found.plugin_version}, {"complaint", found.plugin_complaint}}},
        {"backend_path", found.backend_path},
        {"machine",
         {{"isa_found", here.isa_found},
          {"isa_allowed", here.isa_allowed},
          {"packed_weights", here.packed_weights},
          {"cores", here.cores},
          {"hardware_threads", here.cpus},
          {"total_memory", here.total_memory},
          {"available_memory", here.available_memory},
          {"huge_pages", here.huge_pages}}},
        {"hosts", hosts},
        {"complaints", found.complaints},
        {"knobs", knobs}};
    // Names and log lines are bytes of other programs, not always UTF-8.
    return report.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

} // namespace alloy::tool
