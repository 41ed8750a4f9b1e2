#include "counter_files.h"

#include "base/os.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

namespace fs = std::filesystem;

constexpr const char * suffix = ".counters";

// Seconds since 1970; 0 when unknown.
uint64_t start_of_process(int process) {
    std::ifstream stat("/proc/" + std::to_string(process) + "/stat");
    std::string line;
    std::getline(stat, line);
    const size_t name_end = line.rfind(')'); // the name may hold spaces and brackets
    if (name_end == std::string::npos) return 0;
    std::istringstream fields(line.substr(name_end + 1));
    std::string field;
    for (int i = 3; i <= 22 && fields >> field; i++) {
    } // field 22: start in clock ticks after boot
    const uint64_t ticks = std::strtoull(field.c_str(), nullptr, 10);
    std::ifstream machine("/proc/stat");
    for (std::string key; std::getline(machine, key);) {
        if (key.rfind("btime ", 0) == 0)
            return std::strtoull(key.c_str() + 6, nullptr, 10) + ticks / static_cast<uint64_t>(sysconf(_SC_CLK_TCK));
    }
    return 0;
}

bool is_dead(int process, uint64_t file_started) {
    if (kill(process, 0) != 0) return errno == ESRCH;
    constexpr uint64_t clock_slack = 60;                           // the wall clock may have been set since
    return start_of_process(process) > file_started + clock_slack; // a younger process has got the number
}

// What another program wrote goes to a terminal.
void make_printable(char * text, size_t size) {
    text[size - 1] = 0;
    for (char * c = text; *c != 0; c++) {
        if (static_cast<unsigned char>(*c) < 32 || *c == 127) *c = '?';
    }
}

// A pipe or a huge file of that name must not hold us up. Returns the bytes read.
size_t read_block(const std::string & path, counter_block & block, uint64_t & file_bytes) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (file < 0) return 0;
    struct stat info {};
    ssize_t got = 0;
    if (fstat(file, &info) == 0 && S_ISREG(info.st_mode)) {
        file_bytes = static_cast<uint64_t>(info.st_size);
        got = read(file, static_cast<void *>(&block), sizeof(block));
    }
    close(file);
    return got < 0 ? 0 : static_cast<size_t>(got);
}

} // namespace

counter_file_state read_counter_file(const std::string & path, counter_file & file, std::string & why) {
    file.path = path;
    file.block = std::make_unique<counter_block>();
    counter_block & block = *file.block;
    uint64_t bytes = 0;
    const int process = std::atoi(fs::path(path).filename().c_str());
    const size_t got = read_block(path, block, bytes);
    const auto is = [&](counter_file_state state, const std::string & reason) {
        why = path + ": " + reason;
        return state;
    };
    if (process <= 0) return is(counter_file_state::foreign, "expected a name like 1234.counters; skipped");
    const bool has_magic = got >= sizeof(block.magic) && std::memcmp(block.magic, "alloyctr", sizeof(block.magic)) == 0;
    const bool no_magic_yet = got == 0 || (got == sizeof(block) && block.magic[0] == 0);
    if (!has_magic && !no_magic_yet)
        return is(counter_file_state::foreign, "no counter file, expected it to begin with 'alloyctr'; skipped");
    // The start is known only from a whole file; the number alone must do for the others.
    const bool is_whole = has_magic && got == sizeof(block);
    if (is_dead(process, is_whole ? block.started : UINT64_MAX / 2)) return is(counter_file_state::dead, "left over");
    if (no_magic_yet) return is(counter_file_state::being_made, "being made");
    if (!is_whole) return is(counter_file_state::foreign, fmt::format("{} bytes, expected {}; skipped", bytes, sizeof(block)));
    if (block.version != counter_version)
        return is(counter_file_state::foreign,
                  fmt::format("counters of version {}, expected {}; skipped", block.version, counter_version));
    if (block.process != process)
        return is(counter_file_state::foreign, fmt::format("says process {}, expected {}; skipped", block.process, process));
    make_printable(block.program, sizeof(block.program));
    make_printable(block.host, sizeof(block.host));
    make_printable(block.isa, sizeof(block.isa));
    for (auto & op : block.op_names) make_printable(op, sizeof(op));
    return counter_file_state::good;
}

std::vector<counter_file> read_counter_files(const std::string & folder, std::vector<std::string> & complaints) {
    std::vector<counter_file> files;
    std::error_code error;
    if (folder.empty()) return files;
    for (const auto & entry : fs::directory_iterator(folder, error)) {
        if (entry.path().extension() != suffix) continue;
        counter_file file;
        std::string why;
        switch (read_counter_file(entry.path().string(), file, why)) {
        case counter_file_state::good: files.push_back(std::move(file)); break;
        case counter_file_state::dead: os::remove_file(entry.path().string()); break;
        case counter_file_state::foreign: complaints.push_back(why); break;
        case counter_file_state::being_made: break;
        }
    }
    std::sort(files.begin(), files.end(),
              [](const counter_file & a, const counter_file & b) { return a.block->process < b.block->process; });
    return files;
}

} // namespace alloy::tool
