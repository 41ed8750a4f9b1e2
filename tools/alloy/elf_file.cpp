#include "elf_file.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <functional>
#include <memory>

#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

#if defined(__x86_64__)
constexpr uint16_t own_machine = EM_X86_64;
#elif defined(__aarch64__)
constexpr uint16_t own_machine = EM_AARCH64;
#else
constexpr uint16_t own_machine = EM_NONE;
#endif

// The file is read, not mapped: one that is being replaced while we look gives a short read instead of SIGBUS.
class reader {
public:
    explicit reader(const std::string & path) : file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
        struct stat info {};
        if (file >= 0 && fstat(file, &info) == 0 && S_ISREG(info.st_mode))
            size_ = static_cast<uint64_t>(info.st_size);
        else if (file >= 0)
            is_regular = false;
    }
    ~reader() {
        if (file >= 0) close(file);
    }
    reader(const reader &) = delete;
    reader & operator=(const reader &) = delete;

    bool is_open() const { return file >= 0 && is_regular; }
    uint64_t size() const { return size_; }

    bool read(uint64_t offset, void * to, size_t bytes) const {
        if (offset > size_ || bytes > size_ - offset) return false;
        return pread(file, to, bytes, static_cast<off_t>(offset)) == static_cast<ssize_t>(bytes);
    }
    std::string read_up_to(uint64_t offset, size_t bytes) const {
        std::string text(offset >= size_ ? 0 : std::min<uint64_t>(bytes, size_ - offset), 0);
        const ssize_t got = pread(file, text.data(), text.size(), static_cast<off_t>(offset));
        text.resize(got < 0 ? 0 : static_cast<size_t>(got));
        return text;
    }

private:
    int file;
    bool is_regular = true;
    uint64_t size_ = 0;
};

std::vector<std::string> split_path(const std::string & text) {
    std::vector<std::string> parts;
    for (size_t begin = 0; begin <= text.size();) {
        const size_t end = std::min(text.find(':', begin), text.size());
        if (end > begin) parts.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return parts;
}

std::string wrong_header(const Elf64_Ehdr & header) {
    if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return "no ELF file, expected a program or shared library";
    if (header.e_ident[EI_CLASS] != ELFCLASS64) return "a 32-bit ELF file, expected 64-bit";
    if (header.e_ident[EI_DATA] != ELFDATA2LSB) return "a big-endian ELF file, expected little-endian";
    if (header.e_type != ET_EXEC && header.e_type != ET_DYN)
        return fmt::format("an ELF file of type {}, expected a program or shared library", header.e_type);
    if (own_machine != EM_NONE && header.e_machine != own_machine)
        return fmt::format("made for ELF machine {}, expected {}", header.e_machine, own_machine);
    if (header.e_phentsize != sizeof(Elf64_Phdr)) return "an ELF file with program headers of a foreign size";
    return {};
}

// Where the bytes at this address of the loaded image stand in the file.
bool offset_of(const std::vector<Elf64_Phdr> & segments, uint64_t address, uint64_t & offset) {
    for (const Elf64_Phdr & s : segments) {
        if (s.p_type != PT_LOAD || address < s.p_vaddr || address - s.p_vaddr >= s.p_filesz) continue;
        offset = s.p_offset + (address - s.p_vaddr);
        return true;
    }
    return false;
}

bool read_dynamic(const reader & file, const std::vector<Elf64_Phdr> & segments, const Elf64_Phdr & dynamic, elf_file & elf) {
    constexpr size_t largest_section = size_t(1) << 20, longest_text = 4096;
    std::vector<Elf64_Dyn> entries(std::min<uint64_t>(dynamic.p_filesz, largest_section) / sizeof(Elf64_Dyn));
    if (!file.read(dynamic.p_offset, entries.data(), entries.size() * sizeof(Elf64_Dyn))) return false;
    uint64_t strings = 0, string_bytes = 0;
    for (const Elf64_Dyn & entry : entries) {
        if (entry.d_tag == DT_NULL) break;
        if (entry.d_tag == DT_STRSZ) string_bytes = entry.d_un.d_val;
        if (entry.d_tag == DT_STRTAB && !offset_of(segments, entry.d_un.d_ptr, strings)) return false;
    }
    for (const Elf64_Dyn & entry : entries) {
        if (entry.d_tag == DT_NULL) break;
        if (entry.d_tag != DT_NEEDED && entry.d_tag != DT_SONAME && entry.d_tag != DT_RPATH && entry.d_tag != DT_RUNPATH)
            continue;
        if (strings == 0 || entry.d_un.d_val >= string_bytes || strings > UINT64_MAX - string_bytes) return false;
        const std::string raw = file.read_up_to(strings + entry.d_un.d_val, longest_text);
        if (raw.find('\0') == std::string::npos) return false;
        const std::string text = raw.c_str();
        if (entry.d_tag == DT_NEEDED)
            elf.needed.push_back(text);
        else if (entry.d_tag == DT_SONAME)
            elf.soname = text;
        else
            (entry.d_tag == DT_RPATH ? elf.rpath : elf.runpath) = split_path(text);
    }
    return true;
}

// Calls `look` with overlapping pieces of the file until it returns true.
bool search_file(const std::string & path, size_t overlap, const std::function<bool(const std::string &)> & look) {
    constexpr size_t piece = size_t(4) << 20;
    const reader file(path);
    if (!file.is_open()) return false;
    for (uint64_t offset = 0; offset < file.size(); offset += piece) {
        if (look(file.read_up_to(offset, piece + overlap))) return true;
    }
    return false;
}

} // namespace

bool read_elf(const std::string & path, elf_file & elf, std::string & complaint) {
    elf = {};
    elf.path = path;
    const auto complain = [&](const std::string & what) {
        complaint = path + ": " + what;
        return false;
    };
    const reader file(path);
    if (!file.is_open()) return complain("cannot be read, expected a program or shared library");
    const auto cut = [&](const char * what) {
        return complain(fmt::format("cut short: {} bytes end within its {}", file.size(), what));
    };
    Elf64_Ehdr header{};
    const std::string head = file.read_up_to(0, sizeof(header));
    std::memcpy(&header, head.data(), head.size());
    // A 32-bit header is shorter than ours: only a 64-bit one can be cut short here.
    if (head.size() < sizeof(header) && std::memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 &&
        header.e_ident[EI_CLASS] != ELFCLASS32)
        return cut("ELF header");
    if (const std::string wrong = wrong_header(header); !wrong.empty()) return complain(wrong);

    std::vector<Elf64_Phdr> segments(header.e_phnum);
    if (!file.read(header.e_phoff, segments.data(), segments.size() * sizeof(Elf64_Phdr))) return cut("program headers");
    elf.machine = header.e_machine;
    for (const Elf64_Phdr & segment : segments) {
        if (segment.p_type != PT_DYNAMIC) continue;
        elf.is_dynamic = true;
        if (!read_dynamic(file, segments, segment, elf)) return cut("dynamic section");
    }
    return true;
}

bool file_contains(const std::string & path, const std::string & text) {
    return search_file(path, text.size(), [&](const std::string & piece) { return piece.find(text) != std::string::npos; });
}

std::string text_after(const std::string & path, const std::string & prefix) {
    constexpr size_t longest = 32;
    std::string found;
    search_file(path, prefix.size() + longest, [&](const std::string & piece) {
        for (size_t at = piece.find(prefix); at != std::string::npos; at = piece.find(prefix, at + 1)) {
            const size_t begin = at + prefix.size();
            if (begin >= piece.size() || !std::isdigit(static_cast<unsigned char>(piece[begin]))) continue;
            const size_t end =
                std::min(piece.find_first_of(std::string(" \0\n", 3), begin), std::min(piece.size(), begin + longest));
            found = piece.substr(begin, end - begin);
            return true;
        }
        return false;
    });
    return found;
}

} // namespace alloy::tool
