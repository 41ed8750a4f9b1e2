#include "plugin_file.h"

#include "elf_file.h"

#include <filesystem>

namespace alloy::tool {

namespace fs = std::filesystem;

bool find_plugin(const std::string & asked, std::string & path, std::string & complaint) {
    std::error_code error;
    std::string looked;
    const fs::path own = fs::read_symlink("/proc/self/exe", error).parent_path();
    const std::string file = "libggml-alloy.so";
    const fs::path places[] = {own / file, own / "../lib" / file, own / "../lib/ggml-alloy" / file,
                               own / "../lib/x86_64-linux-gnu" / file, own / "../lib/aarch64-linux-gnu" / file};
    if (!asked.empty()) {
        path = fs::absolute(asked, error).lexically_normal().string();
        looked = path;
        if (!fs::exists(path, error)) path.clear();
    } else {
        path.clear();
        for (const fs::path & place : places) {
            if (path.empty() && fs::exists(place, error)) path = place.lexically_normal().string();
        }
        looked = own.string() + " and " + (own / "../lib").lexically_normal().string();
    }
    if (path.empty()) {
        complaint = "libggml-alloy.so: not found in " + looked + "; --plugin FILE names it";
        if (!asked.empty()) complaint = "--plugin: got '" + asked + "', which does not exist, expected libggml-alloy.so";
        return false;
    }
    elf_file elf;
    if (!read_elf(path, elf, complaint)) return false;
    if (!file_contains(path, "ggml_backend_init")) {
        complaint = path + ": no ggml backend, expected libggml-alloy.so";
        return false;
    }
    return true;
}

std::string plugin_version(const std::string & path) {
    return text_after(path, "ggml-alloy "); // the device's description starts so
}

} // namespace alloy::tool
