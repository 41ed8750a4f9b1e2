// What a program or library asks the dynamic linker for, read from its ELF headers. Nothing of the file is ever run.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace alloy::tool {

struct elf_file {
    std::string path;
    uint16_t machine = 0;    // EM_X86_64, EM_AARCH64
    bool is_dynamic = false; // has a dynamic section; a fully static program has none
    std::string soname;
    std::vector<std::string> needed; // DT_NEEDED, in order
    std::vector<std::string> rpath;  // DT_RPATH and DT_RUNPATH, split at ':', $ORIGIN not yet replaced
    std::vector<std::string> runpath;
};

// Returns false and one line that names the file, what was found and what was expected: not an ELF file, 32-bit, big-endian, for
// another processor than this tool's, cut short.
bool read_elf(const std::string & path, elf_file & elf, std::string & complaint);

// Whether the bytes of `text` stand anywhere in the file. False when it cannot be read.
bool file_contains(const std::string & path, const std::string & text);

// The characters that follow `prefix` at its first place in the file where a digit follows, up to a space or zero; "" when none
// do.
std::string text_after(const std::string & path, const std::string & prefix);

} // namespace alloy::tool
