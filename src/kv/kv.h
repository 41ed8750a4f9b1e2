// The KV store: every cache tensor is written, read, saved, restored, copied and cleared through here.
//
// Cells lie as rows of the declared type at the tensor's own address, with memory only behind the pages that were written. A lossy policy
// seals blocks of 64 cells that are full and not recent: each head becomes a page of a codec (formats/kv_codec.h) in an arena, and the rows' memory goes
// back to the system. Whoever wants rows again, for a write, a read or an operation of the host, gets them opened.
#pragma once
#include "host/abi_v3.h"
#include "kernels/attention/attention.h"
#include "kv/channel_balance.h"
#include "kv/eviction.h"
#include "kv/exact_cells.h"
#include "kv/head_rates.h"
#include "kv/page_arena.h"
#include "kv/policy.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
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
    const channel_balance * balance = nullptr; // of sealed keys, or null
    attention_pages of(int64_t stream, int64_t head) const { return {pages + (stream * heads + head) * pages_a_head, d, stride}; }
};

// The view of a [d, cells, heads, streams] tensor that lies in memory as it is described. Its type must have kernels.
kv_view plain_view(const host::tensor & t);

// Cells of one block that a graph or the host writes.
struct block_write {
    int64_t block;   // of the whole tensor
    uint64_t cells;  // bit c: cell c
};

// What the keys of each head lack in sealed pages, [heads][d] in their transform; counted as live bytes.
struct key_means {
    const std::vector<float> values;
    const int64_t d;
    key_means(std::vector<float> means, int64_t d);
    const float * of(int64_t head) const { return values.data() + head * d; }
    void add(int64_t head, float times, std::vector<float> & rows) const; // to each row of d
    ~key_means();
    key_means(const key_means &) = delete;
};

// What is lost of 64 rows of d in a codec; empty when they cannot be encoded.
std::vector<float> error_of(const std::vector<float> & rows, kv_codec codec, int64_t d);
double energy(const std::vector<float> & x);

// What one head keeps of a run.
struct packed_head {
    attention_packing cells;
    int64_t least; // the kept cell that was attended least
};

using packed_runs = std::map<int64_t, std::vector<packed_head>>; // heads, by the run's first block

class cache_tensor {
  public:
    cache_tensor(const host::tensor & declared, void * address, size_t bytes, const policy & wanted, page_arena & arena, head_rates & rates,
                 eviction & evicted, exact_cells & exact);
    ~cache_tensor();
    cache_tensor(const cache_tensor &) = delete;
    cache_tensor & operator=(const cache_tensor &) = delete;

    uintptr_t address() const { return address_; }
    size_t bytes() const { return bytes_; }
    size_t row_bytes() const { return row_bytes_; }
    int64_t num_rows() const { return num_rows_; } // cells of all streams
    int64_t num_streams() const { return static_cast<int64_t>(streams_.size()); }
    int64_t rows_a_stream() const { return num_rows_ / num_streams(); }
    const cache_name & name() const { return name_; }

    // --- host accesses to bytes [offset, offset + bytes), in the declared type; already bounds-checked
    void write(const void * data, size_t offset, size_t bytes);
    void read(void * data, size_t offset, size_t bytes) const;
    void fill(uint8_t value, size_t offset, size_t bytes);
    void clear();
    // Copies a range of another cache tensor of the same row layout. False: not possible without going through rows.
    bool copy_from(const cache_tensor & source, size_t source_offset, size_t offset, size_t bytes);

    // --- operations of the host on rows at the tensor's own address
    void keep_plain(const char * why); // for good
    bool fits_as_rows() const;         // whether there is memory for that
    bool is_plain() const { return plain_; }
    // From now on graphs write cells without expect(), as to transposed values: what was written is not known any more.
    void expect_unseen_writes() { unseen_ = true; }
    // Opens and seals again what was open, the share of one of num_threads threads.
    void open_share(int thread, int num_threads);
    void seal_share(int thread, int num_threads);

    // --- graphs
    // The view that a [d, cells, heads, streams] tensor over this cache (permuted as FLASH_ATTN_EXT wants it) describes.
    kv_view view(const host::tensor & t);
    void balance_by(channel_balance wanted); // keys, before the first view
    // Before rows are written: opens their blocks.
    void expect(const std::vector<block_write> & writes);
    // The graph's cells of this stream end here: what lies beyond is not used by anybody.
    void trim(int64_t stream, int64_t cells);
    // Whether blocks are full, and none of their cells stays as it is; seal() seals them.
    bool has_sealable() const { return !sealable(1).empty(); }
    std::vector<int64_t> sealable(size_t most) const; // blocks that seal() would seal, some of them
    void seal();

    // --- rates of heads, known once attention has shown them
    int64_t d() const { return d_; }
    int64_t heads() const { return heads_; }
    int64_t rotation() const { return rotation_; } // of sealed pages: groups of so many; 0: none
    const channel_balance & balance() const { return balance_; } // of sealed pages
    void set_codec(int64_t head, kv_codec codec); // of blocks sealed from now on
    head_rates & rates() const { return rates_; }
    std::shared_ptr<const key_means> means_for(int64_t block) const; // of keys: the block's, those it had before it was saved, its neighbours', or from its own rows
    std::vector<float> turned_rows(int64_t block, int64_t head) const;    // [64][d]: rows as sealed pages hold them, sealed pages as rows do
    std::vector<float> rows_as_sealed(int64_t block, int64_t head) const; // [64][d]: both as sealed pages hold them, with their mean

    attention_pages pages_of(int64_t stream, int64_t head) const { return {pages_.data() + (stream * heads_ + head) * blocks_a_stream_, d_, static_cast<int64_t>(row_bytes_)}; }
    const attention_tiles * tiles() const { return rows_->tiles; }

    // --- eviction: runs of sealed blocks of which heads keep some cells
    eviction & evicted() const { return evicted_; }
    exact_cells & exact() const { return exact_; }
    void pair_with(cache_tensor & other) { partner_ = &other, other.partner_ = this; } // keys and values of a layer: packed and unpacked together
    // The blocks of run number `run` (of attention_packing::max_blocks, counted from the start of the cache) but for those up to its last sinks.
    // False: some are not sealed, or packed already.
    bool find_sealed_run(int64_t run, int64_t & first, int64_t & num);
    bool may_pack(int64_t first, int64_t num, int64_t head) const; // whether its pages are of one codec and mean
    size_t page_bytes(int64_t block, int64_t head) const;          // of a sealed page
    void pack(int64_t num, packed_runs & made); // takes the one run of `made`, of num blocks; allocates nothing
    bool is_sealed(int64_t block) const { return blocks_[static_cast<size_t>(block)].sealed; }
    bool is_packed(int64_t block) const { return run_of(block) != nullptr; }
    void unpack_all(); // into rows

  private:
    static constexpr int64_t block_cells = attention_block;
    static constexpr size_t most_last_means = 8;
    static constexpr int64_t mean_blocks = 16; // neighbours share their means. Not all: positions turn keys, and their mean
    struct block {
        uint64_t written = 0; // bit c: cell c holds a row
        uint64_t decoded = 0; // of these those that were sealed with `means`
        uint64_t retry = 0;   // rows of the stream before which it is not tried again
        bool sealed = false;
        bool opened = false;  // by open_share(), to be sealed again by seal_share(), or later when a graph ended between the two
        bool listed = false;  // in open_
        bool stuck = false;   // holds what no codec takes
        bool restored = false; // by the host: rows may have been sealed before
        std::shared_ptr<const key_means> means; // of keys that were sealed, and may be again
    };
    struct stream {
        uint64_t rows = 0; // written so far
        int64_t top = 0;   // blocks from here on hold nothing
    };
    bool learn_heads(const host::tensor & t);
    void forget_balance();
    bool is_sealable(int64_t block) const;
    int64_t stream_of(int64_t block) const { return block / blocks_a_stream_; }
    uint8_t * rows_of(int64_t block) const { return reinterpret_cast<uint8_t *>(address_) + static_cast<size_t>(block * block_cells) * row_bytes_; }
    attention_page & page(int64_t block, int64_t head);
    const attention_page & page(int64_t block, int64_t head) const { return const_cast<cache_tensor *>(this)->page(block, head); }
    size_t block_bytes() const { return row_bytes_ * block_cells; }

    void show_codec(int64_t head, int number) const; // in the published map
    void make_writable(int64_t block, bool all_of_it);
    void note_write(const block_write & w);
    void list(int64_t block); // in open_
    std::vector<float> rows_as_they_lie(int64_t block, int64_t head) const; // [64][d], with their mean
    std::shared_ptr<const key_means> means_of_rows(int64_t block) const;
    double loss_with(const key_means & means, std::vector<float> rows) const; // of the first head's turned rows, in its codec
    void remember(const std::shared_ptr<const key_means> & means);
    bool encode_block(int64_t block, const key_means * means, std::vector<attention_page> & sealed) const;
    bool seal_block(int64_t block);
    void show_rows(int64_t block); // in the table of pages
    void show_sealed(int64_t block, const std::vector<attention_page> & sealed);
    void give_back(const std::vector<attention_page> & sealed);
    template <class F> void each_block_of(int thread, int num_threads, F f);
    void decode_block(int64_t block, uint8_t * rows) const; // 64 rows of the declared type
    void open_block(int64_t block);
    void show_opened(int64_t block); // once its rows are decoded
    const std::vector<packed_head> * run_of(int64_t block) const; // that the block is packed in, or null
    void unpack_rows(const packed_head & of, int64_t block, int64_t head, float * rows) const;
    void unpack(int64_t block);
    void read_rows(void * data, size_t offset, size_t bytes) const;
    void list_opened();
    bool copy_pages(const cache_tensor & source, int64_t from, int64_t to);
    void free_pages(int64_t block);
    void drop_block(int64_t block);
    void drop_rows(int64_t block);
    bool holds_rows(int64_t block) const { return !blocks_[static_cast<size_t>(block)].sealed && blocks_[static_cast<size_t>(block)].written != 0; }
    // Calls f(block, first row in it, rows, offset in the data) for the blocks of a byte range, rows cut by it included.
    template <class F> void each_block(size_t offset, size_t bytes, F f) const;

    int type_;
    uintptr_t address_;
    size_t bytes_, row_bytes_;
    int64_t num_rows_, blocks_a_stream_;
    cache_name name_;
    policy policy_;
    page_arena & arena_;
    head_rates & rates_;
    eviction & evicted_;
    exact_cells & exact_;
    cache_tensor * partner_ = nullptr;
    bool whole_blocks_; // no block has cells of two streams
    bool plain_;        // rows for good
    bool unseen_ = false; // blocks may hold rows that are not marked as written; plain as well

    int64_t d_ = 0, heads_ = 0, rotation_ = 0;  // known once attention has shown them
    channel_balance balance_;
    const attention_cells * rows_ = nullptr;    // kernels on rows
    std::vector<kv_codec> codecs_;              // [heads]
    std::vector<attention_page> pages_;         // [streams][heads][blocks_a_stream]
    std::vector<block> blocks_;
    std::vector<stream> streams_;
    packed_runs runs_;
    std::vector<std::shared_ptr<const key_means>> last_means_; // that were used, the newest last
    std::vector<int32_t> open_;                 // blocks that hold rows and may be sealed some day
    std::atomic<bool> any_opened_{false};       // since list_opened()
};

// The cache tensors of one buffer.
class store {
  public:
    explicit store(const policy & wanted) : policy_(wanted), rates_(wanted), evicted_(wanted), exact_(wanted.window) {}
    void add(const host::tensor & declared, void * address, size_t bytes);
    void sort(); // after the last add()
    cache_tensor * find(uintptr_t address);
    void clear();

  private:
    policy policy_;
    page_arena arena_;
    head_rates rates_;
    eviction evicted_;
    exact_cells exact_;
    std::vector<std::unique_ptr<cache_tensor>> caches_; // sorted by address
};

} // namespace alloy::kv
