#include "base/os.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace alloy::os {
namespace {

constexpr size_t huge_page_bytes = size_t(2) << 20;

size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

std::string first_line(const std::string & path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

// A number from a cgroup file; "max" and absent files give `none`.
size_t number_in(const std::string & path, size_t none) {
    const std::string line = first_line(path);
    if (line.empty() || line[0] < '0' || line[0] > '9') return none;
    return std::strtoull(line.c_str(), nullptr, 10);
}

// Folders of this process's cgroup from its own up to the root, in the unified (v2) and the memory/cpu (v1) hierarchies.
std::vector<std::string> cgroup_folders(const char * controller) {
    std::vector<std::string> folders;
    std::ifstream file("/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        std::string path = line.substr(second + 1);
        std::string root;
        if (controllers.empty()) root = "/sys/fs/cgroup";
        else if (("," + controllers + ",").find("," + std::string(controller) + ",") != std::string::npos)
            root = std::string("/sys/fs/cgroup/") + controller;
        else continue;
        while (true) {
            folders.push_back(root + (path == "/" ? "" : path));
            if (path.empty() || path == "/") break;
            path = path.substr(0, path.rfind('/'));
            if (path.empty()) path = "/";
        }
    }
    return folders;
}

size_t meminfo(const char * key) {
    std::ifstream file("/proc/meminfo");
    for (std::string line; std::getline(file, line);) {
        if (line.compare(0, std::strlen(key), key) == 0) return std::strtoull(line.c_str() + std::strlen(key) + 1, nullptr, 10) << 10;
    }
    return 0;
}

struct cgroup_memory {
    size_t limit = SIZE_MAX; // the smallest limit on the way to the root
    size_t room = SIZE_MAX;  // limit minus usage, page cache counted as free
};

cgroup_memory memory_of_cgroup() {
    cgroup_memory result;
    for (const std::string & folder : cgroup_folders("memory")) {
        size_t limit = number_in(folder + "/memory.max", SIZE_MAX);
        size_t used = number_in(folder + "/memory.current", 0);
        if (limit == SIZE_MAX) {
            limit = number_in(folder + "/memory.limit_in_bytes", SIZE_MAX);
            used = number_in(folder + "/memory.usage_in_bytes", 0);
        }
        if (limit >= SIZE_MAX / 4) continue; // v1 writes a huge number for "no limit"
        size_t cache = 0;
        std::ifstream stat(folder + "/memory.stat");
        for (std::string key, value; stat >> key >> value;) {
            if (key == "inactive_file" || key == "total_inactive_file") cache = std::strtoull(value.c_str(), nullptr, 10);
        }
        used -= std::min(used, cache);
        result.limit = std::min(result.limit, limit);
        result.room = std::min(result.room, limit - std::min(limit, used));
    }
    return result;
}

int cgroup_cpus(int none) {
    int cpus = none;
    for (const std::string & folder : cgroup_folders("cpu")) {
        std::istringstream v2(first_line(folder + "/cpu.max"));
        double quota = 0, period = 0;
        if (!(v2 >> quota >> period)) {
            quota = static_cast<double>(number_in(folder + "/cpu.cfs_quota_us", 0));
            period = static_cast<double>(number_in(folder + "/cpu.cfs_period_us", 0));
        }
        if (quota > 0 && period > 0) cpus = std::min(cpus, std::max(1, static_cast<int>(quota / period + 0.5)));
    }
    return cpus;
}

struct module_search {
    const char * prefix;
    std::string path;
};

int match_module(dl_phdr_info * info, size_t, void * user) {
    auto * search = static_cast<module_search *>(user);
    const char * slash = std::strrchr(info->dlpi_name, '/');
    const char * file = slash ? slash + 1 : info->dlpi_name;
    if (std::strncmp(file, search->prefix, std::strlen(search->prefix)) != 0) return 0;
    search->path = info->dlpi_name;
    return 1;
}

} // namespace

size_t page_bytes() {
    static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return bytes;
}

void * reserve(size_t bytes) {
    void * address = mmap(nullptr, round_up(std::max<size_t>(bytes, 1), page_bytes()), PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return address == MAP_FAILED ? nullptr : address;
}

void * reserve_aligned(size_t bytes, size_t alignment) {
    auto * address = static_cast<char *>(reserve(bytes + alignment));
    if (address == nullptr) return nullptr;
    const size_t before = round_up(reinterpret_cast<uintptr_t>(address), alignment) - reinterpret_cast<uintptr_t>(address);
    if (before > 0) release(address, before);
    release(address + before + round_up(bytes, page_bytes()), alignment - before);
    return address + before;
}

bool commit(void * address, size_t bytes) {
    const auto begin = reinterpret_cast<uintptr_t>(address) / page_bytes() * page_bytes();
    const auto end = round_up(reinterpret_cast<uintptr_t>(address) + bytes, page_bytes());
    return mprotect(reinterpret_cast<void *>(begin), end - begin, PROT_READ | PROT_WRITE) == 0;
}

void * allocate(size_t bytes) {
    void * address = reserve(bytes);
    if (address == nullptr) return nullptr;
    if (!commit(address, std::max<size_t>(bytes, 1))) {
        release(address, bytes);
        return nullptr;
    }
    advise_huge(address, bytes);
    return address;
}

void advise_huge(void * address, size_t bytes) {
    if (bytes < 4 * huge_page_bytes) return;
    const auto begin = reinterpret_cast<uintptr_t>(address) / page_bytes() * page_bytes();
    madvise(reinterpret_cast<void *>(begin), reinterpret_cast<uintptr_t>(address) + bytes - begin, MADV_HUGEPAGE);
}

void release(void * address, size_t bytes) {
    if (address != nullptr) munmap(address, round_up(std::max<size_t>(bytes, 1), page_bytes()));
}

bool drop_pages(void * address, size_t bytes) {
    const auto begin = round_up(reinterpret_cast<uintptr_t>(address), page_bytes());
    const auto end = (reinterpret_cast<uintptr_t>(address) + bytes) / page_bytes() * page_bytes();
    return begin >= end || madvise(reinterpret_cast<void *>(begin), end - begin, MADV_DONTNEED) == 0;
}

file_view map_same_file(const void * data, size_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(data);
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        unsigned long begin = 0, end = 0, offset = 0;
        int path_at = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx %*s %lx %*s %*s %n", &begin, &end, &offset, &path_at) < 3) continue;
        if (address < begin || address >= end || bytes > end - address) continue;
        if (path_at <= 0 || line[path_at] != '/') return {};
        const int file = open(line.c_str() + path_at, O_RDONLY | O_CLOEXEC);
        if (file < 0) return {};
        const size_t position = offset + (address - begin);
        const size_t start = position / page_bytes() * page_bytes();
        file_view view;
        view.bytes = round_up(position - start + bytes, page_bytes());
        void * base = mmap(nullptr, view.bytes, PROT_READ, MAP_PRIVATE, file, static_cast<off_t>(start));
        close(file);
        if (base == MAP_FAILED) return {};
        view.base = base;
        view.data = static_cast<const char *>(base) + (position - start);
        return view;
    }
    return {};
}

size_t total_memory() {
    const size_t physical = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * page_bytes();
    return std::min(physical, memory_of_cgroup().limit);
}

size_t available_memory() { return std::min(meminfo("MemAvailable:"), memory_of_cgroup().room); }

int usable_cpus() {
    cpu_set_t mask;
    CPU_ZERO(&mask);
    if (sched_getaffinity(0, sizeof(mask), &mask) != 0) return 1;
    std::set<std::string> cores; // hyper-threads of one core share this string
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &mask)) continue;
        const std::string siblings = first_line("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
        cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
    }
    return cgroup_cpus(std::max(1, static_cast<int>(cores.size())));
}

std::string program_name() {
    char path[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
    if (length <= 0) return {};
    path[length] = 0;
    const char * slash = std::strrchr(path, '/');
    return slash ? slash + 1 : path;
}

int process_id() { return static_cast<int>(getpid()); }

std::string module_of(const void * code) {
    Dl_info info{};
    return code != nullptr && dladdr(code, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

void * loaded_module(const std::string & path) { return path.empty() ? nullptr : dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD); }

void * loaded_module_by_name(const char * file_name_prefix) {
    module_search search{file_name_prefix, {}};
    dl_iterate_phdr(match_module, &search);
    return loaded_module(search.path);
}

void * main_program() { return dlopen(nullptr, RTLD_NOW); }

void * symbol(void * module, const char * name) { return dlsym(module, name); }

std::string runtime_directory() {
    const char * xdg = std::getenv("XDG_RUNTIME_DIR");
    const std::string base = xdg != nullptr && *xdg != 0 && access(xdg, W_OK) == 0 ? xdg : "/tmp";
    const std::string path = base + "/ggml-alloy-" + std::to_string(getuid());
    mkdir(path.c_str(), 0700);
    struct stat info {};
    // In /tmp somebody else could have made it first.
    if (lstat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode) || info.st_uid != getuid()) return {};
    return path;
}

void * map_shared_file(const std::string & path, size_t bytes) {
    const int file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file < 0) return nullptr;
    void * address = MAP_FAILED;
    if (ftruncate(file, static_cast<off_t>(bytes)) == 0) address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return address == MAP_FAILED ? nullptr : address;
}

void remove_file(const std::string & path) { unlink(path.c_str()); }

} // namespace alloy::os
