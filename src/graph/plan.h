// A plan: what to do for one graph, decided once and then only run.
#pragma once
#include "graph/cache_use.h"
#include "graph/memory.h"
#include "host/abi_v3.h"
#include "ops/attention.h"
#include "ops/mul_mat.h"
#include "ops/row_op.h"
#include "ops/sampling_chain.h"
#include "ops/sampling_op.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace alloy::graph {

struct byte_range {
    uintptr_t begin, end;
    bool meets(const byte_range & other) const { return begin < other.end && other.begin < end; }
};
byte_range range_at(const void * data, size_t bytes);
byte_range range_of(const host::tensor * t);

// A chain of row calls on one partition of rows: each call reads only its own rows of what the calls before it wrote, so a thread
// runs the whole chain on its rows without waiting for others.
struct row_chain {
    static constexpr int max_calls = 4;
    ops::row_call calls[max_calls];
    int num_calls;
    int64_t rows_per_task;
    const ops::quantize_call * quantize = nullptr; // of the last call's rows, for the products that read them
};

// Memory that steps of one plan work in: quantised activations, states of attention. Null when there was none.
class scratch {
  public:
    explicit scratch(size_t bytes);
    ~scratch();
    scratch(const scratch &) = delete;
    scratch & operator=(const scratch &) = delete;
    uint8_t * data() const { return data_; }

  private:
    uint8_t * data_;
    size_t bytes_;
};

// num_tasks of a step that shares its work among the threads itself: `run` gets (thread, num_threads).
constexpr int one_task_a_thread = -1;

// A step as plain data. `run` does the given task of num_tasks; tasks of a step are independent of one another.
struct step {
    void (*run)(const void * arguments, int task, int num_tasks) = nullptr; // null: the host's CPU backend runs `nodes`
    const void * arguments = nullptr;
    int num_tasks = 0;
    bool barrier = true;              // all threads must have finished every step before this one
    std::vector<host::tensor *> nodes; // host step: what the host runs; else the nodes that the step computes, for printing
    int fused_nodes = 0;              // nodes whose result is never written
    std::vector<byte_range> reads, writes;
    std::string label;
};

// Whether one of the steps writes what the other touches: a barrier must stand between them.
bool steps_meet(const step & before, const step & after);

// A node that computes something: no view, flagged for this run, not empty.
bool is_live(const host::tensor * node);

// Row numbers that come with each run; outside [0, limit) they would make the host abort.
struct index_check {
    const host::tensor * indices; // I32 or I64, in host memory
    int64_t limit;
    const host::tensor * node;
};

// A node that is its own description (ops/sampling_op.h).
struct node_step {
    const host::tensor * node;
    ops::node_kernel run;
};

// Samplers of several rows, a task each.
struct chain_step {
    std::vector<std::unique_ptr<ops::sampling_chain>> chains;
};

// Consecutive steps without a barrier between them, as one CUSTOM node of the host.
struct step_range {
    const step * begin;
    const step * end;
    std::atomic<bool> * failed; // set when one of them is
};

struct plan {
    uint64_t uid = 0;
    host::tensor ** nodes = nullptr; // with uid and n_nodes the key of the cache
    int n_nodes = 0;

    std::vector<step> steps;
    std::vector<index_check> checks;          // prologue
    std::vector<memory *> memories;           // whose refused accesses fail the run
    std::unique_ptr<cache_use> caches = std::make_unique<cache_use>();
    int64_t tokens = 0;
    int delegated_nodes = 0;
    int rule_misses = 0;
    std::string failure;                      // not empty: this graph cannot run, and why

    // What steps point at; addresses stay put when the plan moves.
    std::vector<std::unique_ptr<row_chain>> chains;
    std::vector<std::unique_ptr<ops::rope_table>> rope_tables;
    std::vector<std::unique_ptr<ops::quantize_call>> quantize_calls;
    std::vector<std::unique_ptr<ops::mul_mat_call>> mul_mats;
    std::vector<std::unique_ptr<ops::mul_mat_id_call>> mul_mat_ids;
    std::vector<std::unique_ptr<ops::mask_map>> mask_maps;
    std::vector<std::unique_ptr<ops::attention_call>> attentions;
    std::vector<std::unique_ptr<node_step>> node_steps;
    std::vector<std::unique_ptr<chain_step>> chain_steps;
    std::vector<std::unique_ptr<scratch>> scratches;
    std::vector<std::unique_ptr<host::tensor>> clones; // delegated nodes with another source, such sources, CUSTOM nodes
    std::vector<std::unique_ptr<step_range>> ranges;
    std::vector<host::tensor *> carried; // the whole plan as nodes for the host's CPU backend; made at the first run
};

// Never throws for any graph; memory for the plan itself aside.
plan make_plan(const host::graph & graph);

// One line a step.
std::string print_plan(const plan & p);

// The promises that the executor relies on: no barrier is missing between steps whose ranges meet, no fused node is read later.
// Empty when they hold. Run for every plan in checked builds.
std::string verify_plan(const plan & p, const host::graph & graph);

} // namespace alloy::graph
