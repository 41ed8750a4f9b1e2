// Operating-system calls: memory, processors, modules, files. Linux is in os_linux.cpp; another system is one more file.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace alloy::os {

// --- virtual memory: sizes in bytes, rounded up to pages by the callee; null or false on failure, never an exception -------------
size_t page_bytes();
void * reserve(size_t bytes);                      // an address range without memory behind it
void * reserve_aligned(size_t bytes, size_t alignment); // at a multiple of `alignment`, a power of two
bool commit(void * address, size_t bytes);         // makes part of a reserved range readable and writable, zero-filled
void * allocate(size_t bytes);                     // reserve + commit + advise_huge
void advise_huge(void * address, size_t bytes);    // asks for huge pages; where there are none, ordinary ones serve
void release(void * address, size_t bytes);        // gives the range back
bool drop_pages(void * address, size_t bytes);     // whole pages inside the range become zero and leave the process

// A read-only private mapping of the part of a file that `data` already maps, page-aligned; see map_same_file().
struct file_view {
    void * base = nullptr;   // null: `data` is not in a file mapping
    size_t bytes = 0;
    const void * data = nullptr; // where the bytes stand in the new mapping
};
file_view map_same_file(const void * data, size_t bytes);

// --- machine ----------------------------------------------------------------------------------------------------------------------
size_t total_memory();      // physical memory or the cgroup limit, whichever is less
size_t available_memory();  // what can be allocated without swapping, within the cgroup limit
int usable_cpus();          // physical cores within the affinity mask and the cgroup quota, at least 1
std::string program_name(); // basename of the running executable
int process_id();

// --- modules ----------------------------------------------------------------------------------------------------------------------
std::string module_of(const void * code);                   // path of the loaded module that holds this address
void * loaded_module(const std::string & path);             // handle of a module that is loaded already, else null
void * loaded_module_by_name(const char * file_name_prefix); // first loaded module whose file name starts so
void * main_program();
void * symbol(void * module, const char * name);

// --- shared file for counters -----------------------------------------------------------------------------------------------------
std::string runtime_directory();                            // per-user folder for small live files; created, mode 0700
void * map_shared_file(const std::string & path, size_t bytes); // created, zero-filled, mode 0600
void remove_file(const std::string & path);

} // namespace alloy::os
