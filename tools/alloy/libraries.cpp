#include "libraries.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include <glob.h>

namespace alloy::tool {
namespace {

namespace fs = std::filesystem;
using texts = std::vector<std::string>;

constexpr size_t most_libraries = 1024; // far beyond any program; stops a crafted tree

void append_conf(const std::string & path, int depth, texts & folders) {
    std::ifstream file(path);
    for (std::string line; depth < 8 && std::getline(file, line);) {
        std::istringstream words(line.substr(0, line.find('#')));
        std::string word, pattern;
        if (!(words >> word)) continue;
        if (word != "include") {
            folders.push_back(word);
            continue;
        }
        while (words >> pattern) {
            glob_t found{};
            if (glob(pattern.c_str(), 0, nullptr, &found) == 0) {
                for (size_t i = 0; i < found.gl_pathc; i++) append_conf(found.gl_pathv[i], depth + 1, folders);
            }
            globfree(&found);
        }
    }
}

const texts & standard_folders() {
    static const texts folders = [] {
        texts list;
        append_conf("/etc/ld.so.conf", 0, list);
#if defined(__aarch64__)
        const texts always = {"/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"};
#else
        const texts always = {"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"};
#endif
        list.insert(list.end(), always.begin(), always.end());
        return list;
    }();
    return folders;
}

texts library_path() {
    const char * value = std::getenv("LD_LIBRARY_PATH");
    texts folders;
    std::istringstream parts(value ? value : "");
    for (std::string part; std::getline(parts, part, ':');) folders.push_back(part.empty() ? "." : part);
    return folders;
}

// Replaces $ORIGIN by the folder of the file that carries the path.
std::string expanded(std::string folder, const std::string & carrier) {
    const std::string origin = fs::path(carrier).parent_path().string();
    for (const char * token : {"${ORIGIN}", "$ORIGIN"}) {
        for (size_t at = folder.find(token); at != std::string::npos; at = folder.find(token, at + origin.size())) {
            folder.replace(at, std::string(token).size(), origin);
        }
    }
    return folder;
}

texts expanded(const texts & folders, const std::string & carrier) {
    texts list;
    for (const std::string & folder : folders) list.push_back(expanded(folder, carrier));
    return list;
}

struct walk {
    library_set & set;
    std::set<std::string> seen{}; // names and SONAMEs: the linker loads each once

    bool find(const std::string & name, const elf_file & asker, const texts & inherited, elf_file & found) const {
        std::string ignored;
        if (name.find('/') != std::string::npos) return read_elf(name, found, ignored);
        texts folders = asker.runpath.empty() ? inherited : texts{}; // a RUNPATH switches every RPATH off
        const texts more[] = {library_path(), expanded(asker.runpath, asker.path), standard_folders()};
        for (const texts & list : more) folders.insert(folders.end(), list.begin(), list.end());
        for (const std::string & folder : folders) {
            std::error_code error;
            const std::string path = fs::absolute(folder, error).lexically_normal().string() + "/" + name;
            // A file for another processor is passed over, as the linker does.
            if (fs::exists(path, error) && read_elf(path, found, ignored)) return true;
        }
        return false;
    }

    void visit(const elf_file & file, texts inherited) {
        const texts own = expanded(file.rpath, file.path);
        inherited.insert(inherited.begin(), own.begin(), own.end());
        for (const std::string & name : file.needed) {
            if (seen.size() > most_libraries || !seen.insert(name).second) continue;
            elf_file found;
            if (!find(name, file, inherited, found))
                set.missing.push_back(name + " (needed by " + file.path + ")");
            else
                visit(found, inherited);
        }
        if (!file.soname.empty()) seen.insert(file.soname);
        set.files.push_back(file);
    }
};

bool is_named(const std::string & file_name, const std::string & stem) {
    const std::string start = stem + ".so";
    return file_name == start || file_name.rfind(start + ".", 0) == 0;
}

} // namespace

library_set libraries_of(const elf_file & program) {
    library_set set;
    walk{set}.visit(program, {});
    return set;
}

const elf_file * library_named(const library_set & set, const std::string & stem) {
    for (const elf_file & file : set.files) {
        if (is_named(fs::path(file.path).filename().string(), stem) || is_named(file.soname, stem)) return &file;
    }
    return nullptr;
}

bool needs(const elf_file & file, const std::string & stem) {
    return std::any_of(file.needed.begin(), file.needed.end(), [&](const std::string & name) { return is_named(name, stem); });
}

} // namespace alloy::tool
