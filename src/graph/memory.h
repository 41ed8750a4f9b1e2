// What one of our host-visible buffers holds: weights, caches and plain memory. Every host access to tensor data ends here, is
// bounds-checked without wrapping, and is answered by the store that owns the bytes.
#pragma once
#include "host/abi_v3.h"
#include "kv/kv.h"
#include "weights/weights.h"

#include <atomic>
#include <memory>
#include <vector>

namespace alloy::graph {

enum class purpose : uint8_t { weights, kv, state, compute, other };

class memory {
  public:
    // One piece of plain memory (the scheduler's compute buffers). Null when there is none.
    static std::unique_ptr<memory> plain(size_t bytes);
    // Memory for a list of named tensors, some of which may be views or allocated already, as alloc_buffer_n gets it. Places
    // nothing yet: see place(). Null when memory is short.
    static std::unique_ptr<memory> for_tensors(host::tensor ** tensors, int n);
    // Bytes that for_tensors() would lay out, without allocating.
    static size_t bytes_for(host::tensor ** tensors, int n);
    // The memory that they will take once in use: less where cells are compressed. --fit plans with it.
    static size_t expected_bytes(host::tensor ** tensors, int n);
    ~memory();

    // Gives every tensor of the list its address in `buffer`, whose context this is. False: the host refused or memory is short.
    bool place(host::buffer * buffer, host::tensor ** tensors, int n);

    void * base() const { return base_; }
    size_t bytes() const { return bytes_; }

    // Accesses of `bytes` bytes at `offset` of tensor `t`. Out of range: nothing happens, a line is logged and the next graph fails.
    void write(const host::tensor * t, const void * data, size_t offset, size_t bytes);
    void read(const host::tensor * t, void * data, size_t offset, size_t bytes);
    void fill(const host::tensor * t, uint8_t value, size_t offset, size_t bytes);
    void clear(uint8_t value);
    // False: the host shall copy through read() and write().
    bool copy(const host::tensor * from, const memory & source, const host::tensor * to);

    weights::weight * find_weight(const host::tensor * t) { return weights_.find(reinterpret_cast<uintptr_t>(t->data)); }
    kv::cache_tensor * find_cache(uintptr_t address) { return caches_.find(address); }
    weights::weight_set & weights() { return weights_; }

    // True once after a refused access, then false again.
    bool take_refusal() { return refused_.exchange(false); }

  private:
    memory() = default;
    // Whether the access stays inside the tensor and inside its bytes here.
    bool admit(const host::tensor * t, const char * what, size_t offset, size_t bytes);

    purpose purpose_ = purpose::compute;
    void * base_ = nullptr;
    size_t bytes_ = 0;
    size_t committed_ = 0; // the rest is address range only
    std::vector<size_t> offsets_; // of the tensors of for_tensors(), SIZE_MAX: not ours to place
    weights::weight_set weights_;
    kv::store caches_{kv::wanted_policy()};
    std::atomic<bool> refused_{false};
};

inline constexpr size_t tensor_alignment = 64; // a cache line and an AVX-512 vector

// The tensor that owns the bytes `t` looks at.
inline const host::tensor * root_of(const host::tensor * t) {
    while (t->view_src != nullptr) t = t->view_src;
    return t;
}

// Our buffer type; its buffers have a `memory` as context.
void set_own_buffer_type(const host::buffer_type * own);
bool is_own(const host::buffer * buffer);
// The memory behind a tensor, or null when it is not ours (or an empty candidate buffer of the loader).
memory * memory_of(const host::tensor * t);

} // namespace alloy::graph
