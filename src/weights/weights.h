// Weights: every model weight in our buffers is stored, looked up and unpacked through here.
//
// Layouts a weight can be in:
//   plain   GGUF rows at the tensor's own address
//   packed  groups of 16 rows at the tensor's own address (formats/packed.h), one matrix after another; what matmul reads
//   shadow  in the host's repacked layout, in a tensor of the host's own buffer type; the weight keeps only its address range with
//           us. The host picks its fast kernels by buffer type, so this is what makes delegation as fast as stock.
//   file    GGUF rows in a mapping of the model file, for models that do not fit into memory
#pragma once
#include "formats/packed.h"
#include "host/abi_v3.h"
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace alloy::weights {

enum class layout : uint8_t { plain, packed, shadow, file };

// --- what the loader has shown us -----------------------------------------------------------------------------------------------

// The loader asks for each weight with a node that will use it, before any memory exists. Remembers weights offered as src0 of
// MUL_MAT or MUL_MAT_ID: only these may leave the plain layout.
void note_offer(const host::tensor * node);
bool was_offered(const host::tensor * weight);

// Whether layer `index` of some loaded model has its weights with us ("blk.<index>.*"); decides who takes its cache operations.
bool owns_layer(int index);
// "blk.<n>." -> n, else -1.
int layer_of(const char * name);

// --- one weight -------------------------------------------------------------------------------------------------------------------

struct weight {
    host::tensor described; // type, shape, strides, name as allocated
    host::tensor * handle;  // the host's tensor; lives as long as the buffer
    uintptr_t address = 0;  // its rows, or its address range with us
    size_t bytes = 0;
    layout where = layout::plain;
    weight_type packed_as = weight_type::count; // layout::packed
    void * plain_rows = nullptr;                // layout::packed: a copy as GGUF rows, for nodes that matmul does not run
    host::buffer_type * shadow_type = nullptr; // layout::shadow: the host's choice
    host::tensor shadow{};  // layout::shadow: the tensor to hand to the host in its place
    bool written = false;   // the shadow, or the file mapping, has the data
};

// --- the weights of one buffer ----------------------------------------------------------------------------------------------------

class weight_set {
  public:
    weight_set() = default;
    ~weight_set();
    weight_set(const weight_set &) = delete;
    weight_set & operator=(const weight_set &) = delete;

    // Bytes that `t` takes in its buffer, as plain rows or packed; a multiple of nothing.
    static size_t bytes_for(const host::tensor * t);
    // Registers a weight before memory is laid out and chooses its layout.
    void add(host::tensor * t, bool short_of_memory);
    // Whether `t` needs memory of ours, or only an address range.
    bool needs_memory(const host::tensor * t) const;
    // Called when the tensors have their addresses. False: the host could not allocate the shadows.
    bool place();

    weight * find(uintptr_t address);

    // Host access to bytes [offset, offset + bytes) of a weight, in GGUF layout; already bounds-checked. False: impossible, with a
    // logged reason.
    bool write(weight & w, const void * data, size_t offset, size_t bytes);
    bool read(weight & w, void * data, size_t offset, size_t bytes);
    // Writes `value` to every byte of every weight, in GGUF layout.
    bool fill(uint8_t value);

    // Turns the weight into plain rows at its own address, for good. False: the layout has no inverse or memory is short.
    bool make_plain(weight & w);
    // Where a packed weight can be read as GGUF rows: a copy, made at the first call. Null: memory is short.
    const void * plain_rows(weight & w);

  private:
    // Two contexts on one model may ask at once; the lock is held by the public functions that move bytes.
    std::mutex moving_;
    bool unpack(weight & w);
    void write_packed(weight & w, const uint8_t * data, size_t offset, size_t bytes);
    void read_packed(const weight & w, uint8_t * data, size_t offset, size_t bytes);
    bool make_shadows();
    bool commit_plain(weight & w);
    bool keep_in_file(weight & w, const void * data);

    std::vector<std::unique_ptr<weight>> weights_; // sorted by address after place()
    std::vector<host::buffer *> shadow_buffers_;
    std::vector<std::pair<void *, size_t>> file_views_;
};

} // namespace alloy::weights
