// Which files a program's libraries would be, found as the dynamic linker finds them but without running anything.
#pragma once
#include "elf_file.h"

#include <string>
#include <vector>

namespace alloy::tool {

struct library_set {
    std::vector<elf_file> files;      // dependencies first, the program itself last
    std::vector<std::string> missing; // "libfoo.so.1 (needed by /path/libbar.so)"
};

// Order for each name: DT_RPATH of the file and of those that asked for it, LD_LIBRARY_PATH, DT_RUNPATH of the file, then the
// folders of /etc/ld.so.conf and the standard ones.
library_set libraries_of(const elf_file & program);

// Files in `set` whose name is `stem`.so or `stem`.so.N...; null when there is none.
const elf_file * library_named(const library_set & set, const std::string & stem);
bool needs(const elf_file & file, const std::string & stem);

} // namespace alloy::tool
