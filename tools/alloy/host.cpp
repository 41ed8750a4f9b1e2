#include "host.h"

#include "elf_file.h"
#include "libraries.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

namespace fs = std::filesystem;

constexpr const char * known_programs[] = {"llama-cli", "llama-server", "llama-completion", "llama-bench", "llama"};

bool is_file(const std::string & path) {
    struct stat info {};
    return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

std::string resolved(const std::string & path) {
    std::error_code error;
    const fs::path real = fs::canonical(path, error);
    return error ? path : real.string();
}

std::vector<std::string> path_folders() {
    const char * value = std::getenv("PATH");
    std::vector<std::string> folders;
    std::istringstream parts(value ? value : "/usr/local/bin:/usr/bin:/bin");
    for (std::string part; std::getline(parts, part, ':');) folders.push_back(part.empty() ? "." : part);
    return folders;
}

// Programs of a folder, else its library: bindings for other languages ship only that.
std::vector<std::string> candidates_in(const std::string & folder) {
    std::vector<std::string> files, others;
    for (const std::string & where : {folder, folder + "/bin", folder + "/build/bin"}) {
        for (const char * name : known_programs) {
            if (is_file(where + "/" + name)) files.push_back(where + "/" + name);
        }
        std::error_code error;
        for (const auto & entry : fs::directory_iterator(where, fs::directory_options::skip_permission_denied, error)) {
            const std::string path = entry.path().string();
            if (entry.path().filename().string().rfind("llama-", 0) == 0 && access(path.c_str(), X_OK) == 0 && is_file(path))
                others.push_back(path);
        }
        if (files.empty()) files = others;
        if (!files.empty()) return files;
    }
    for (const std::string & where : {folder, folder + "/lib"}) {
        for (const char * name : {"libllama.so", "libggml.so", "libggml.so.0"}) {
            if (is_file(where + "/" + name)) return {where + "/" + name};
        }
    }
    return {};
}

// Programs that share a libggml, in the same folder and way, are one host.
void add_host(std::vector<llama_host> & hosts, const llama_host & found) {
    for (llama_host & known : hosts) {
        if (found.libggml.empty() || known.libggml != found.libggml || known.folder != found.folder) continue;
        if (std::find(known.programs.begin(), known.programs.end(), found.programs[0]) == known.programs.end())
            known.programs.push_back(found.programs[0]);
        return;
    }
    hosts.push_back(found);
}

std::vector<llama_host> hosts_on_path() {
    std::vector<llama_host> hosts;
    std::vector<std::string> seen;
    for (const std::string & folder : path_folders()) {
        for (const char * name : known_programs) {
            const std::string path = folder + "/" + name;
            // The shell takes the first of each name; later ones are never run.
            if (!is_file(path) || access(path.c_str(), X_OK) != 0 || std::find(seen.begin(), seen.end(), name) != seen.end())
                continue;
            seen.emplace_back(name);
            llama_host found;
            std::string ignored; // a script or another program of that name
            if (inspect_host(path, found, ignored)) add_host(hosts, found);
        }
    }
    return hosts;
}

} // namespace

const char * name_of(link_style style) {
    switch (style) {
    case link_style::run_time: return "run-time";
    case link_style::linked_in: return "linked-in";
    case link_style::fully_static: return "static";
    }
    return "?";
}

const char * meaning_of(link_style style) {
    switch (style) {
    case link_style::run_time: return "backends loaded at run time, GGML_BACKEND_PATH is always read";
    case link_style::linked_in: return "CPU backend linked in, GGML_BACKEND_PATH is read when devices are asked for: -dev ALLOY0";
    case link_style::fully_static: return "ggml is inside the program, which exports nothing to a plugin";
    }
    return "?";
}

bool inspect_host(const std::string & file, llama_host & found, std::string & complaint) {
    found = {};
    const std::string path = resolved(file); // the kernel resolves links before $ORIGIN is taken
    elf_file program;
    if (!read_elf(path, program, complaint)) return false;
    found.programs = {path};
    found.folder = fs::path(path).parent_path().string();

    const library_set set = libraries_of(program);
    found.missing = set.missing;
    const elf_file * ggml = library_named(set, "libggml");
    if (ggml == nullptr) {
        const bool is_missing =
            std::any_of(set.missing.begin(), set.missing.end(), [](const std::string & m) { return m.rfind("libggml", 0) == 0; });
        if (is_missing) {
            complaint = path + ": library not found: " + set.missing.front();
            return false;
        }
        if (!file_contains(path, "ggml_backend")) {
            complaint = path + ": no llama.cpp program, expected one that needs libggml.so";
            return false;
        }
        found.style = link_style::fully_static;
        return true;
    }
    found.libggml = ggml->path;
    const bool linked =
        std::any_of(set.files.begin(), set.files.end(), [](const elf_file & f) { return needs(f, "libggml-cpu"); });
    found.style = linked ? link_style::linked_in : link_style::run_time;
    for (const elf_file & library : set.files) {
        found.libraries.push_back(library.path);
        if (library.path == ggml->path) break;
    }
    return true;
}

std::vector<llama_host> find_hosts(const std::vector<std::string> & names, std::vector<std::string> & complaints) {
    if (names.empty()) {
        std::vector<llama_host> hosts = hosts_on_path();
        if (hosts.empty())
            complaints.emplace_back("no llama.cpp program on PATH: looked for llama-cli, llama-server, llama-completion, "
                                    "llama-bench, llama; name a file or folder");
        return hosts;
    }
    std::vector<llama_host> hosts;
    for (const std::string & name : names) {
        std::error_code error;
        const bool is_folder = fs::is_directory(name, error);
        std::vector<std::string> files = is_folder ? candidates_in(name) : std::vector<std::string>{name};
        if (!is_folder && !is_file(name)) {
            bool is_forbidden = false;
            files = {find_program(name, is_forbidden)};
            if (files[0].empty()) {
                complaints.push_back(name + ": no such file or folder, and no program of that name on PATH");
                continue;
            }
        }
        if (files.empty()) complaints.push_back(name + ": no llama.cpp program or libllama.so in this folder");
        bool any = false;
        std::string complaint;
        for (const std::string & file : files) {
            llama_host found;
            if (!inspect_host(file, found, complaint)) continue;
            add_host(hosts, found);
            any = true;
        }
        if (!any && !files.empty()) complaints.push_back(complaint);
    }
    return hosts;
}

std::string find_program(const std::string & name, bool & is_forbidden) {
    is_forbidden = false;
    const auto folders = name.find('/') != std::string::npos ? std::vector<std::string>{""} : path_folders();
    for (const std::string & folder : folders) {
        std::string path = folder.empty() ? name : folder + "/" + name;
        struct stat info {};
        if (name.empty() || stat(path.c_str(), &info) != 0) continue;
        if (S_ISREG(info.st_mode) && access(path.c_str(), X_OK) == 0) return path;
        is_forbidden = true;
    }
    return {};
}

bool find_host_program(const std::string & host, const std::string & name, std::string & path, std::vector<std::string> & device_flags,
                       std::string & complaint) {
    bool is_forbidden = false;
    path.clear();
    std::error_code error;
    const std::string folder = host.empty() || fs::is_directory(host, error) ? host : fs::path(host).parent_path().string();
    if (host.empty()) {
        path = find_program(name, is_forbidden);
    } else {
        for (const char * below : {"/", "/bin/", "/build/bin/"}) {
            if (path.empty()) path = find_program((folder.empty() ? "." : folder) + below + name, is_forbidden);
        }
    }
    if (path.empty()) {
        complaint = fmt::format("{}: {} {}; --host DIR says where llama.cpp is", name, is_forbidden ? "not executable," : "not found",
                                host.empty() ? "on PATH" : "in " + host);
        return false;
    }
    path = fs::absolute(path, error).string();
    llama_host target;
    std::string ignored; // a script gets the variable and nothing else
    if (!inspect_host(path, target, ignored)) return true;
    if (target.style == link_style::fully_static) {
        complaint = path + ": linked statically, no plugin can be loaded";
        return false;
    }
    if (target.style == link_style::linked_in) device_flags = {"-dev", "ALLOY0"};
    return true;
}

bool is_model_file(const std::string & path, std::string & complaint) {
    char magic[4] = {};
    std::ifstream file(path, std::ios::binary);
    std::error_code error;
    const bool is_folder = fs::is_directory(path, error);
    if (!is_folder && file.read(magic, 4) && std::string(magic, 4) == "GGUF") return true;
    complaint = path + (is_folder         ? ": a folder, expected a GGUF file"
                        : !file.is_open() ? ": no such file, or not readable"
                                          : ": no model, expected a GGUF file");
    return false;
}

} // namespace alloy::tool
