// The host's own CPU backend, called from inside: what runs every node that this plugin has no kernel for.
#pragma once
#include "host/abi_v3.h"
#include <memory>
#include <vector>

namespace alloy::host {

// The host's CPU device, or null while it is not registered (plugins of fixed slots load before it).
device * cpu_device();

// Whether the CPU backend can compute this node, whatever buffers its data is in.
bool cpu_supports(const tensor * node);

// The CPU backend's repacking buffer types (REPACK, AMX, KleidiAI), in the host's own order of preference; may be empty.
const std::vector<buffer_type *> & cpu_repack_buffer_types();

using abort_callback = bool (*)(void * user);

// One private instance of the CPU backend. Not shared between threads.
class cpu_backend {
  public:
    static std::unique_ptr<cpu_backend> make(); // null when the host has no CPU device
    ~cpu_backend();
    cpu_backend(const cpu_backend &) = delete;
    cpu_backend & operator=(const cpu_backend &) = delete;

    void set_num_threads(int n);
    void set_abort_callback(abort_callback callback, void * user);

    // Runs the nodes in order. `order` lends its use counts and hash set, which the host's fusion reads.
    int compute(tensor ** nodes, int n, const graph & order);

  private:
    explicit cpu_backend(backend * raw);
    void follow_num_threads();

    backend * raw_;
    int num_threads_ = 0;
    void * pool_ = nullptr; // only for hosts without OpenMP, which otherwise start new threads for every call
    int pool_threads_ = 0;
};

} // namespace alloy::host
