// What a graph does to cache tensors: noted when it is planned, prepared before each run, sealed at its end.
#pragma once
#include "kv/kv.h"
#include "ops/work_counter.h"

#include <memory>
#include <vector>

namespace alloy::graph {

struct cache_write { // a SET_ROWS
    kv::cache_tensor * cache;
    const host::tensor * indices; // I64 [rows], in host memory
    int64_t first_row;            // of the cache, that index 0 stands for
};

struct cache_read { // keys or values of a FLASH_ATTN_EXT
    kv::cache_tensor * cache;
    int64_t first_stream, num_streams;
    int64_t cells; // of each stream; none beyond is used. Negative: the tensor does not say
};

// One layer's attention, some of whose tokens may be sampled to learn what bits its heads need, and which cells.
struct sampled_layer {
    kv::cache_tensor *keys, *values;
    int64_t tokens; // of the graph
    kv::attention_sample sample;
};

struct cache_use {
    std::vector<cache_write> writes;
    std::vector<cache_read> reads;
    const host::tensor * positions = nullptr; // I32 [tokens or more], in host memory, or null
    std::vector<std::unique_ptr<sampled_layer>> sampled;
    std::vector<kv::cache_tensor *> opened; // by steps, for the host

    // Before anything is written, with indices that were checked: opens what is written, drops what nobody uses, finds what to seal.
    void prepare();
    // After the last read, in this order; the share of one thread each.
    void measure(int num_threads) const;
    void assign() const; // one thread
    void seal(int num_threads) const;
    void weigh_cells(int num_threads) const;
    void choose_cells() const; // one thread
    void evict(int num_threads) const;
    bool may_seal() const;

  private:
    std::vector<kv::cache_tensor *> to_seal_;
    void choose_samples(bool one_sequence);
    template <class F> void each_store(F f) const;
    bool sampling_ = false; // for rates
    mutable ops::work_counter measuring_, sealing_, weighing_, evicting_;
};

} // namespace alloy::graph
