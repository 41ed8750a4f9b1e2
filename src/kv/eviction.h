// Cells that are attended least leave the cache: GGML_ALLOY_KV_EVICT=<share to keep>. Each head loses cells of its own, in whole pages.
//
// Metric and order of KV-Compress (arXiv 2410.00161): squared probabilities, summed over an observation window and the query heads of a KV
// head, after a maximum over 7 neighbours of each query head; the cheapest page of all layers and heads goes first. Unlike there, the largest of
// the neighbours counts a hundredth: at full weight SmolLM2 loses a fifth less, but Gemma-3 twice as much (docs/performance.md).
// The choice is among the cells of one run of up to 8 blocks (512 cells), once it is sealed; those that observe it are the 128 tokens in the two
// blocks after it. So what a prompt loses does not depend on how it is cut into batches, nor on a question that follows far behind.
//
// The host believes that every cell is there. What could make a missing one matter to anybody else makes eviction stop, for good, with the
// reason in the log: several sequences in one cache, saved states, another context that looks at the cells.
#pragma once
#include "kv/attention_sample.h"
#include "kv/policy.h"

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <vector>

namespace alloy::kv {

class cache_tensor;
struct block_write;

class eviction {
  public:
    explicit eviction(const policy & wanted) : keep_(wanted.lossy ? wanted.keep : 1) {}

    bool on() const { return keep_ < 1 && !refused_; }
    // No cell leaves any more.
    void refuse(const char * why);

    // The tokens of a graph that observe, of one sequence in one stream. `rows`: where they are written, in rows of the cache.
    static std::vector<sampled_token> observers(const std::vector<int64_t> & rows, int64_t stream_begin);
    // These cells are written now. What one of them observed before, say as a rejected draft, cannot be taken back: a run starts anew, and
    // keeps all its cells unless all who observe it come again.
    void expect(const cache_tensor & keys, const std::vector<block_write> & writes);
    // After a graph, of one layer: keeps what tokens observed, and weighs the cells of runs that are sealed and were observed. One thread a layer.
    void weigh(cache_tensor & keys, cache_tensor & values, attention_sample & seen);
    // Chooses among all that was weighed. One thread.
    void choose();
    // Lets the cells of one layer go. One thread a layer.
    void evict(const cache_tensor & keys);
    void forget(); // the cache was cleared

  private:
    struct observations { // of one run
        std::vector<float> squares; // [heads][cells] of probabilities, summed over those who observe
        uint64_t seen[2] = {};      // who did: bit t of word b: the token in cell t of the b-th block after the run
    };
    struct weighed { // one run of sealed blocks
        int64_t run, first_block, num_blocks;
        std::vector<float> metric;   // [kv_heads][cells]
        std::vector<int64_t> pages;  // [kv_heads] to keep
    };
    struct layer {
        cache_tensor *keys, *values;
        std::map<int64_t, observations> waiting; // by run
        std::vector<weighed> ready;
    };
    void observe(layer & l, attention_sample & seen);
    static void add_squares(const cache_tensor & keys, attention_sample & seen, int64_t run, const std::vector<int64_t> & which, std::vector<float> & squares);
    layer * find(const cache_tensor & keys); // or null
    layer & of(cache_tensor & keys, cache_tensor & values);
    void choose(int64_t run);

    double keep_;
    bool refused_ = false;
    std::atomic<bool> told_{false};
    std::mutex lock_;
    std::deque<layer> layers_; // references stay good while it grows
};

} // namespace alloy::kv
