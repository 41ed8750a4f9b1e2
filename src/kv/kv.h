// The KV store: every cache tensor is written, read, saved, restored, copied and cleared through here.
//
// This is the plain implementation: rows of the declared type at the tensor's own address, with memory only behind the pages that
// were written. Paged and compressed stores replace the inside of cache_tensor, not its users.
#pragma once
#include "host/abi_v3.h"
#include "kernels/attention/attention.h"
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace alloy::kv {

// "cache_k_l3", "cache_idx_k_l3": a key or value cache of one layer.
struct cache_name {
    bool is_value = false;
    bool is_side_cache = false; // tagged: index caches of sparse attention
    int layer = -1;
};
bool parse_cache_name(const char * name, cache_name & parsed);
bool is_state_name(const char * name); // "cache_r_l0", "cache_s_l0": recurrent state

// What attention reads: for each stream and head the pages of its cells, block by block.
struct kv_view {
    cell_type declared; // of rows that are not sealed
    int64_t d;          // head size, elements
    int64_t heads;
    int64_t streams;
    int64_t cells;      // of each stream
    int64_t stride;     // bytes between tokens that are not sealed
    bool may_be_sealed; // pages turn into codecs, and back, between graphs
    const attention_page * pages; // [streams * heads][pages_a_head]
    int64_t pages_a_head;
    std::vector<attention_page> own; // of a tensor that lies in memory as it is described
    attention_pages of(int64_t stream, int64_t head) const { return {pages + (stream * heads + head) * pages_a_head, d, stride}; }
};

// The view of a [d, cells, heads, streams] tensor that lies in memory as it is described. Its type must have kernels.
kv_view plain_view(const host::tensor & t);

class cache_tensor {
  public:
    cache_tensor(const host::tensor & declared, void * address, size_t bytes);

    uintptr_t address() const { return address_; }
    size_t bytes() const { return bytes_; }
    const cache_name & name() const { return name_; }

    // Host accesses to bytes [offset, offset + bytes), in the declared type; already bounds-checked.
    void write(const void * data, size_t offset, size_t bytes);
    void read(void * data, size_t offset, size_t bytes) const;
    void fill(uint8_t value, size_t offset, size_t bytes);
    void clear();
    // Copies a range of another cache tensor of the same row layout. False: not possible without going through rows.
    bool copy_from(const cache_tensor & source, size_t source_offset, size_t offset, size_t bytes);

    // Rows of the declared type at the tensor's own address, for nodes that the host runs. False: memory is short.
    bool materialise();

    // The view that a [d, cells, heads, streams] tensor over this cache (permuted as FLASH_ATTN_EXT wants it) describes.
    kv_view view(const host::tensor & t) const;

  private:
    int type_;
    uintptr_t address_;
    size_t bytes_;
    cache_name name_;
};

} // namespace alloy::kv
