// alloy run: starts a llama.cpp program with the plugin. The program takes the place of this process, so that signals, terminal
// and exit code are its own.
#include "commands.h"
#include "host.h"
#include "host_probe.h"
#include "knobs.h"
#include "plugin_file.h"
#include "verdict.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include <unistd.h>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

using texts = std::vector<std::string>;

bool is_one_of(const std::string & text, const texts & list) { return std::find(list.begin(), list.end(), text) != list.end(); }

// Where -dev goes: right behind the program or, for the all-in-one `llama`, behind its subcommand. 0: the program has no such
// option.
size_t place_of_device_option(const texts & command) {
    const std::string name = std::filesystem::path(command[0]).filename().string();
    if (name == "llama") {
        const bool takes = command.size() > 1 && command[1][0] != '-' &&
                           !is_one_of(command[1], {"quantize", "download", "update", "version", "licenses", "credits", "help"});
        return takes ? 2 : 0;
    }
    const bool takes =
        name.rfind("llama-", 0) == 0 && name.rfind("llama-gguf", 0) != 0 && name != "llama-quantize" && name != "llama-tokenize";
    return takes ? 1 : 0;
}

bool user_chose_devices(const texts & command) {
    const char * by_environment = std::getenv("LLAMA_ARG_DEVICE");
    return (by_environment != nullptr && *by_environment != 0) || is_one_of("-dev", command) || is_one_of("--device", command);
}

// Adds `-dev ALLOY0` where the host would not look for plugins without it. Tried first: a host that refuses the plugin would end
// at an unknown device instead of running as stock.
void ask_for_device(const std::string & program, const std::string & plugin, texts & command) {
    llama_host target;
    std::string ignored; // a script or a program of another kind gets the variable and nothing else
    if (!inspect_host(program, target, ignored) || target.style == link_style::run_time) return;
    if (target.style == link_style::fully_static) {
        fmt::print(stderr, "alloy run: {}: linked statically, no plugin can be loaded; it runs as stock\n", command[0]);
        return;
    }
    const size_t place = place_of_device_option(command);
    if (place == 0 || user_chose_devices(command)) return;
    const verdict result = judge(target, probe_host(target, plugin), plugin, read_knobs());
    if (result.is_good() || result.what == outcome::stands_aside) {
        command.insert(command.begin() + static_cast<std::ptrdiff_t>(place), {"-dev", "ALLOY0"});
    } else if (result.what != outcome::off) {
        fmt::print(stderr, "alloy run: {}: runs as stock: {}\n", command[0], result.reason);
    }
}

std::string quoted(const std::string & word) {
    const bool is_plain =
        !word.empty() &&
        word.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:,@%") == std::string::npos;
    if (is_plain) return word;
    std::string text = "'";
    for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return text + "'";
}

void print_command(const std::string & plugin, const texts & command) {
    std::string line = "GGML_BACKEND_PATH=" + quoted(plugin);
    for (const std::string & word : command) line.append(1, ' ').append(quoted(word));
    std::puts(line.c_str());
}

} // namespace

int run(const run_options & options) {
    std::string plugin, complaint;
    if (!find_plugin(options.plugin, plugin, complaint)) {
        fmt::print(stderr, "alloy run: {}\n", complaint);
        return exit_no_plugin;
    }
    texts command = options.command;
    bool is_forbidden = false;
    const std::string program = find_program(command[0], is_forbidden);
    if (program.empty()) {
        fmt::print(stderr, "alloy run: {}: {}\n", command[0],
                   is_forbidden ? "not executable, expected a program"
                                : (command[0].find('/') == std::string::npos ? "not found on PATH" : "no such file"));
        return is_forbidden ? exit_not_executable : exit_not_found;
    }
    ask_for_device(program, plugin, command);
    if (options.print) {
        print_command(plugin, command);
        return exit_good;
    }
    const char * before = std::getenv("GGML_BACKEND_PATH");
    if (before != nullptr && *before != 0 && plugin != before)
        fmt::print(stderr, "alloy run: GGML_BACKEND_PATH was '{}', is now {}\n", before, plugin);
    setenv("GGML_BACKEND_PATH", plugin.c_str(), 1);

    std::vector<char *> arguments;
    for (std::string & word : command) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    std::fflush(nullptr);
    execvp(arguments[0], arguments.data());
    fmt::print(stderr, "alloy run: {}: {}\n", command[0], std::strerror(errno));
    return errno == ENOENT ? exit_not_found : exit_not_executable;
}

} // namespace alloy::tool
