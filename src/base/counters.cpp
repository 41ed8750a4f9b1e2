#include "base/counters.h"

#include "base/os.h"

#include <cstdlib>
#include <cstring>
#include <ctime>

namespace alloy {
namespace {

constexpr counter_info table[] = {
#define ALLOY_COUNTER(name, unit, help) {#name, unit, help},
#include "base/counters.inc"
#undef ALLOY_COUNTER
};

counter_block private_block{};
std::atomic<counter_block *> current{&private_block};

struct published_file {
    std::string path;
    int process = 0;
    // A forked child shares the mapping but must not take its parent's file away.
    ~published_file() {
        if (!path.empty() && os::process_id() == process) os::remove_file(path);
    }
};

void copy_text(char * to, size_t size, const std::string & text) {
    std::strncpy(to, text.c_str(), size - 1);
    to[size - 1] = 0;
}

} // namespace

const counter_info & info_of(counter which) { return table[static_cast<int>(which)]; }

counter_block & counters() { return *current.load(std::memory_order_acquire); }

void publish_counters(const std::string & host_version, const std::string & isa) {
    static published_file file;
    if (!file.path.empty()) return;
    const std::string folder = os::runtime_directory();
    if (folder.empty()) return;
    const std::string path = folder + "/" + std::to_string(os::process_id()) + ".counters";
    auto * block = static_cast<counter_block *>(os::map_shared_file(path, sizeof(counter_block)));
    if (block == nullptr) return;
    file.path = path;
    file.process = os::process_id();

    block->version = counter_version;
    block->num_counters = num_counters;
    block->process = os::process_id();
    block->started = static_cast<uint64_t>(std::time(nullptr));
    copy_text(block->program, sizeof(block->program), os::program_name());
    copy_text(block->host, sizeof(block->host), host_version);
    copy_text(block->isa, sizeof(block->isa), isa);
    for (int i = 0; i < num_counters; i++) block->values[i].store(private_block.values[i].load());
    std::atomic_thread_fence(std::memory_order_release);
    std::memcpy(block->magic, "alloyctr", 8);
    current.store(block, std::memory_order_release);
}

} // namespace alloy
