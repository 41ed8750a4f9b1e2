// A llama.cpp installation: programs that share one libggml, and how that libggml comes by its backends.
#pragma once
#include <string>
#include <vector>

namespace alloy::tool {

// Decides when the host reads GGML_BACKEND_PATH.
enum class link_style {
    run_time,     // backends are separate files: read at every start
    linked_in,    // libggml needs libggml-cpu: read only when devices are asked for, so `-dev ALLOY0` is needed
    fully_static, // libggml is inside the program and exports nothing: no plugin can work
};
const char * name_of(link_style style);
const char * meaning_of(link_style style);

struct llama_host {
    std::vector<std::string> programs; // symbolic links resolved; a library where no program was given
    link_style style = link_style::run_time;
    std::string folder;                 // of the program: where it looks for its backends
    std::string libggml;                // empty when fully static
    std::vector<std::string> libraries; // to load in this order; the last one is libggml
    std::vector<std::string> missing;   // libraries that are nowhere
};

// Reads one program or library. Returns false and one line when it is none that uses ggml.
bool inspect_host(const std::string & file, llama_host & found, std::string & complaint);

// Hosts among `names` (files or folders), or on PATH when there are none. One complaint for each name that leads to no host.
std::vector<llama_host> find_hosts(const std::vector<std::string> & names, std::vector<std::string> & complaints);

// The file that the shell would run for this name; empty when there is none. `is_forbidden`: found, but not executable.
std::string find_program(const std::string & name, bool & is_forbidden);

// A program of the host that the user named (`host`: a folder, a program of it, or empty for PATH), and the flags without which it would
// not load the plugin. Returns false and one line when there is none, or none that can load a plugin.
bool find_host_program(const std::string & host, const std::string & name, std::string & path, std::vector<std::string> & device_flags,
                       std::string & complaint);

// Is it a readable GGUF file? Returns false and one line.
bool is_model_file(const std::string & path, std::string & complaint);

} // namespace alloy::tool
