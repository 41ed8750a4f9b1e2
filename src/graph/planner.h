// Walks a graph once: fusion rules, then single operators, then whatever is left to the host's CPU backend.
#pragma once
#include "graph/plan.h"

#include <algorithm>
#include <unordered_set>
#include <vector>

namespace alloy::graph {

using host::tensor;

// A task should cover at least this much work: about 5 us, ten times what handing it to another thread costs.
constexpr int64_t elements_per_task = 16384;
inline int64_t rows_per_task(int64_t k) { return std::max<int64_t>(1, elements_per_task / k); }

inline int tasks_of(int64_t rows, int64_t rows_a_task) { return static_cast<int>((rows + rows_a_task - 1) / rows_a_task); }

// How often other nodes of the whole graph (not only this part) read `t`; -1 when the graph does not say.
int use_count(const host::graph & graph, const tensor * t);

void run_chain(const void * arguments, int task, int num_tasks); // of a row_chain

class planner {
  public:
    explicit planner(const host::graph & graph);
    plan make();

  private:
    // --- facts about a node that every run must know
    void look_at(const tensor * node);
    void note_memory(const tensor * t);
    void check_indices(const tensor * node, const tensor * indices, int64_t limit);
    kv::cache_tensor * cache_of(const tensor * t) const;
    bool touches_cache(const tensor * node) const;

    // --- caches (planner_caches.cpp)
    void look_at_cache_write(const tensor * node);
    void look_at_cache_read(const tensor * cells);
    void balance_keys(const tensor * attention);
    bool only_shifts_cells() const;
    std::vector<kv::cache_tensor *> caches_to_open(const tensor * node);
    void add_cache_step(bool open, const kv::cache_tensor & cache);
    void add_seal_steps();
    void sample_attention(const tensor * node, ops::attention_call & call);
    static byte_range sample_range(const kv::attention_sample & sample);

    // --- fusion: how many nodes each takes, 0 for none
    size_t fuse(size_t i);
#define ALLOY_RULE(name, help) size_t rule_##name(size_t i);
#include "graph/rules.inc"
#undef ALLOY_RULE
    bool may_vanish(const tensor * t) const; // one node reads it, and nobody outside the graph: it need not be written
    bool can_run(const tensor * node) const { return ops::can_run_rowwise(node) && !touches_cache(node) && !touches_packed(node); }

    // --- products (planner_products.cpp)
    static weights::weight * packed_weight(const tensor * t);
    static bool touches_packed(const tensor * node);
    const weights::weight * weight_of_product(const tensor * node) const;
    size_t run_matrix(size_t i);
    void add_product(void (*run)(const void *, int, int), const void * call, std::vector<tensor *> nodes, const weights::weight & w,
                     const uint8_t * quantized);
    static size_t quantized_bytes(const tensor * product, const weights::weight & w);
    // Activations that lie quantised in a slot: products of one input share them for as long as neither is written again.
    struct quantized_source {
        const uint8_t * data;
        const tensor * columns;
        activation acts;
        size_t next_step; // after the one that made it
    };
    bool quantized_columns(const tensor * product, const weights::weight & w, const uint8_t *& quantized);
    row_chain * chain_that_ends_with(const tensor * columns);
    bool holds_same(const quantized_source & q, const tensor * columns) const;
    void make_slots();

    // --- attention (planner_attention.cpp)
    size_t run_attention_node(size_t i);
    bool add_attention(std::vector<tensor *> nodes, const tensor * out, int64_t rotate_out);
    static size_t bytes_of(const ops::attention_memory & m) { return static_cast<size_t>(m.floats) * sizeof(float); }
    kv::kv_view cells_of(const tensor * t);
    void make_attention_memory();
    const ops::mask_map * mask_map_for(const tensor * node);
    static byte_range sight_range(const ops::mask_map & map);

    // --- row operations
    size_t run_single(size_t i);
    const ops::rope_table * table_for(const tensor * rope);
    static byte_range table_range(const ops::rope_table & table);

    // --- sampling (planner_sampling.cpp)
    size_t run_sampling(size_t i);
    void add_node_step(const ops::node_call & call, std::vector<tensor *> nodes);
    std::unique_ptr<ops::sampling_chain> sampling_chain_at(size_t i);
    bool keep_what_is_read(ops::sampling_chain & chain) const;
    bool is_read_beside(const tensor * pad, const std::unordered_set<const tensor *> & members) const;
    void add_chain(std::unique_ptr<ops::sampling_chain> chain);

    // --- row chains
    static bool rows_apart(const ops::row_operand & a, byte_range a_range, const ops::row_operand & b, byte_range b_range);
    static bool joins(const step & last, const row_chain & chain, const ops::row_call & call, const tensor * node);
    void append(const ops::row_call & call, std::vector<tensor *> nodes, int fused);
    bool may_join(const ops::row_call & call, const tensor * node, const std::vector<tensor *> & nodes) const;

    // --- delegation
    size_t delegate(size_t i);
    static bool repacked_kernel_takes(const tensor * node);
    tensor * prepare(tensor * node);
    tensor * clone_of(const tensor * node, tensor *& prepared);
    void fail(const tensor * t, const char * why);

    // --- barriers
    void drop_barriers();
    bool needs_barrier(size_t since, size_t i) const;

    const host::graph & graph_;
    plan plan_;
    std::vector<tensor *> live_;
    std::unordered_set<const tensor *> produced_;
    ops::attention_memory attention_memory_;
    std::vector<uint8_t *> slots_;
    size_t next_slot_ = 0;
    std::vector<quantized_source> quantized_;
    int misses_ = 0;
};

} // namespace alloy::graph
