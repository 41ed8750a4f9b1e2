#include "report_head.h"

#include "child.h"
#include "host_probe.h"
#include "knobs.h"
#include "machine.h"

#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>

#include <sys/utsname.h>
#include <unistd.h>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

using json = nlohmann::ordered_json;
namespace fs = std::filesystem;

// The value of `key` in a file of lines like "model name : AMD EPYC" or "PRETTY_NAME="Debian"".
std::string line_value(const char * path, const std::string & key) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        if (line.rfind(key, 0) != 0) continue;
        const size_t begin = line.find_first_of(":=");
        if (begin == std::string::npos) continue;
        const size_t first = line.find_first_not_of(" \t\"", begin + 1), last = line.find_last_not_of(" \t\"");
        return first == std::string::npos ? "" : line.substr(first, last - first + 1);
    }
    return {};
}

std::string processor() {
    const std::string name = line_value("/proc/cpuinfo", "model name");
    return name.empty() ? "unknown" : name;
}

// "0.6.0-dev (build 0, commit unknown)" of "version: 0.6.0-dev (build 0, commit unknown)"; empty: it does not say.
std::string told_version(const std::string & program) {
    const finished_child child = run_child({program, "--version"}, side{});
    const std::string text = child.out + child.err, label = "version: ";
    const size_t at = text.find(label);
    if (!child.is_good() || at == std::string::npos) return {};
    return text.substr(at + label.size(), text.find('\n', at) - at - label.size());
}

std::string ggml_version(const std::string & program, const counter_block * counters) {
    llama_host target;
    std::string ignored; // a script
    if (inspect_host(program, target, ignored) && target.style != link_style::fully_static) {
        const probe_result probe = probe_host(target, "");
        if (!probe.version.empty()) return probe.version;
    }
    return counters == nullptr ? "" : std::string(counters->host, strnlen(counters->host, sizeof(counters->host)));
}

} // namespace

json machine_json() {
    const machine found = look_at_machine();
    utsname system{};
    uname(&system);
    const std::string distribution = line_value("/etc/os-release", "PRETTY_NAME");
    json machine = {{"cpu", processor()},
                    {"cores", found.cores},
                    {"cpus", found.cpus},
                    {"isa", found.isa_allowed},
                    {"memory", found.total_memory},
                    {"huge_pages", found.huge_pages},
                    {"system", fmt::format("{}, {} {} {}", distribution, system.sysname, system.release, system.machine)}};
    std::ifstream governor("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    if (std::string word; governor >> word) machine["governor"] = word;
    return machine;
}

json host_json(const std::string & program, const counter_block * counters) {
    json host = {{"program", stem(program)}};
    for (const auto & [name, value] :
         {std::pair{"llama.cpp", told_version(program)}, {"ggml", ggml_version(program, counters)}}) {
        if (!value.empty()) host[name] = value;
    }
    return host;
}

json counters_json(const counter_block & block) {
    json list = json::object();
    for (int i = 0; i < num_counters; i++) list[info_of(static_cast<counter>(i)).name] = block.values[i].load();
    return list;
}

json settings_json(const std::vector<std::pair<std::string, std::string>> & extra) {
    json settings = json::object();
    for (const knob & knob : read_knobs()) {
        if (knob.is_set) settings[knob.info->variable] = knob.value;
    }
    for (const auto & [name, value] : extra) settings[name] = value;
    return settings;
}

std::string now_utc() {
    char text[32];
    const std::time_t now = std::time(nullptr);
    std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
    return text;
}

std::string stem(const std::string & path) { return fs::path(path).filename().string(); }

bool write_file(const std::string & path, const std::string & bytes, std::string & complaint) {
    const std::string part = path + ".part";
    std::ofstream file(part, std::ios::binary);
    file << bytes;
    file.close();
    if (file && std::rename(part.c_str(), path.c_str()) == 0) return true;
    complaint = fmt::format("{}: {}", path, std::strerror(errno));
    unlink(part.c_str());
    return false;
}

bool can_write(const std::string & path, std::string & complaint) {
    std::error_code error;
    const fs::path folder = fs::absolute(path, error).parent_path();
    if (fs::is_directory(path, error))
        complaint = path + ": a folder, expected the name of a file";
    else if (access(folder.c_str(), W_OK) != 0)
        complaint = fmt::format("{}: {}", path, std::strerror(errno));
    else
        return true;
    return false;
}

} // namespace alloy::tool
