// One graph on the plugin's device, handled as llama.cpp handles a model: weights are offered to the device before there is memory,
// allocated in its buffer type, uploaded; then the graph runs, and what it wrote is compared with numbers in double precision.
#pragma once
#include "base/counters.h"
#include "support/matrix_oracle.h"

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>

#include <array>
#include <cstdio>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>

namespace alloy::test {

// --- the device ---------------------------------------------------------------------------------------------------------------------
// One a process. The counters are those of the plugin, read from the file that it publishes.
struct device {
    device() = default;
    ~device();
    device(const device &) = delete;
    device & operator=(const device &) = delete;
    // Loads the host's backends from a folder and the plugin from GGML_BACKEND_PATH; counters go below `runtime_folder`. Returns what
    // is missing, or "".
    std::string open(const char * host_folder, const std::string & runtime_folder);

    ggml_backend_dev_t handle = nullptr;
    ggml_backend_buffer_type_t memory = nullptr;
    ggml_backend_t backend = nullptr, host_backend = nullptr;
    ggml_backend_sched_t scheduler = nullptr;
    ggml_backend_set_n_threads_t set_num_threads = nullptr;
    const counter_block * counters = nullptr;
    std::array<bool, static_cast<size_t>(weight_type::count)> packs{}; // types that the plugin has kernels for, asked at the start

    uint64_t count_of(counter which) const { return counters->values[static_cast<int>(which)].load(); }
    uint64_t delegated(ggml_op op) const { return counters->delegated[op].load(); }
};

// Threads of both backends.
void set_threads(const device & d, int num_threads);

// What the host and the plugin have logged since.
void forget_log();
const std::string & log_text();
bool log_has_errors();

// --- what a scene holds -------------------------------------------------------------------------------------------------------------
struct weight {
    const matrix_type & type;
    ggml_tensor * tensor;
    std::vector<uint8_t> bytes; // GGUF rows
    bool kernel;                // products with it run on a kernel of the plugin
    matrix worth;               // of `bytes`; empty: to be decoded

    int64_t k() const { return tensor->ne[0]; }
    int64_t rows() const { return tensor->ne[1]; }
    const matrix & decoded() {
        if (worth.value.empty()) worth = decode(type, bytes.data(), k(), ggml_nrows(tensor));
        return worth;
    }
};

// A tensor of the graph and what it must be; `want` is asked after each run.
struct node {
    ggml_tensor * tensor;
    std::function<numbers()> want;
};

struct input {
    ggml_tensor *memory, *view; // the view may leave gaps in its memory, which hold NaN
    numbers x;
    std::vector<int32_t> ids;   // I32 instead of f32
    std::vector<uint8_t> bytes; // as they are instead
};

// Visits the byte offset of each row of a tensor, in the order of `numbers`.
template <class Visit> void for_each_row(const ggml_tensor * t, Visit visit) {
    for (int64_t i3 = 0; i3 < t->ne[3]; i3++)
        for (int64_t i2 = 0; i2 < t->ne[2]; i2++)
            for (int64_t i1 = 0; i1 < t->ne[1]; i1++) {
                const auto at1 = static_cast<size_t>(i1) * t->nb[1], at2 = static_cast<size_t>(i2) * t->nb[2];
                visit(i1, i2, i3, at1 + at2 + static_cast<size_t>(i3) * t->nb[3]);
            }
}

enum class layout { dense, strided };

class scene {
  public:
    scene(const device & d, uint64_t seed, uint64_t index);
    ~scene();
    scene(const scene &) = delete;
    scene & operator=(const scene &) = delete;

    // --- chance
    int64_t pick(int64_t low, int64_t high) { return low + static_cast<int64_t>(engine() % static_cast<uint64_t>(high - low + 1)); }
    // Nearly a standard normal number, from four uniform ones: a tenth of the time of std::normal_distribution.
    float normal() {
        const uint64_t bits = engine();
        const uint64_t sum = (bits & 0xFFFF) + (bits >> 16 & 0xFFFF) + (bits >> 32 & 0xFFFF) + (bits >> 48);
        return (static_cast<float>(sum) - 2 * 65535.0f) * (1.7320508f / 65536);
    }
    bool chance(double p) { return std::uniform_real_distribution<double>(0, 1)(engine) < p; }

    // --- parts; each adds itself to the description
    weight & add_weight(const matrix_type & type, int64_t k, int64_t rows, int64_t matrices = 1, int64_t outer = 1,
                        ggml_op offered = GGML_OP_MUL_MAT);
    input & add_bias(int64_t rows); // a vector among the weights
    input & add_input(int64_t n0, int64_t n1, int64_t n2 = 1, int64_t n3 = 1, layout how = layout::dense);
    input & add_ids(int64_t n0, int64_t n1, int64_t limit, bool distinct, int64_t gap = 0);
    input & add_host_bytes(ggml_type type, int64_t n0, int64_t n1, int64_t n2, int64_t n3); // always in host memory, to be filled
    static node leaf(input & in) {
        return {in.view, [&in] { return in.x; }};
    }

    // src0 is the weight, or a view of it that starts at row `first`; a view is the host's to compute, as is whatever `who` says.
    node mul_mat(weight & w, const node & x) { return mul_mat(w, w.tensor, 0, x, w.kernel ? computed_by::kernel : computed_by::host); }
    node mul_mat(weight & w, ggml_tensor * rows, int64_t first, const node & x, computed_by who);
    node mul_mat_id(weight & w, const node & x, input & ids) {
        return mul_mat_id(w, x, ids.view, [&ids] { return ids.ids; });
    }
    node mul_mat_id(weight & w, const node & x, ggml_tensor * ids, std::function<std::vector<int32_t>()> chosen);
    node get_rows(weight & w, input & ids);
    node add(ggml_tensor * sum, const node & a, const node & b); // sum: ggml_add or ggml_add_inplace of the two
    node as_computed(const node & n); // the same tensor, taken for what the device made of it

    void expect(const node & n); // an output of the graph
    void step(const node & n);   // computed at this point, no output
    void note(ggml_op op, computed_by who); // the graph has such a node

    // --- life
    ggml_context * graph_context() const { return nodes_; }
    ggml_context * cache_context() const { return caches_; } // tensors that outlive graphs, in memory of the device that starts as zeros
    void place(); // memory for all weights, and their bytes; memory for caches
    void write(weight & w, const std::vector<uint8_t> & other, size_t offset, size_t bytes); // bytes of `other`, at their place
    void fill(weight & w, uint8_t value, size_t offset, size_t bytes);
    void expect_bytes(weight & w, size_t offset, size_t bytes);
    ggml_backend_buffer_t weight_buffer() const { return weight_buffer_; }
    std::vector<uint8_t> bytes_of(const ggml_tensor * t) const;
    void run();

    void fail(const std::string & why) {
        if (problem.empty()) problem = why;
    }
    void describe(const char * format, ...) __attribute__((format(printf, 2, 3)));

    const device & dev;
    std::mt19937_64 engine;
    std::string description, problem;

  private:
    enum class way { scheduler, reused_memory, own_memory };

    bool offer(ggml_tensor * weight, ggml_op op);
    void allocate_graph();
    void upload();
    void compare(const node & n);
    std::string name(const char * kind) { return "case" + std::to_string(index_) + "." + std::to_string(names_++) + kind; }

    uint64_t index_, names_ = 0;
    way way_;
    bool inputs_on_host_;
    bool placed_ = false, allocated_ = false;
    ggml_context *weights_, *caches_, *leaves_, *host_leaves_, *nodes_;
    ggml_cgraph * graph_;
    ggml_backend_buffer_t weight_buffer_ = nullptr, cache_buffer_ = nullptr, leaf_buffer_ = nullptr, host_leaf_buffer_ = nullptr,
                          node_buffer_ = nullptr;
    ggml_gallocr_t allocator_ = nullptr;
    std::deque<weight> weight_list_;
    std::deque<input> inputs_;
    std::vector<node> outputs_;
    std::map<ggml_op, uint64_t> on_host_{{GGML_OP_MUL_MAT, 0}, {GGML_OP_MUL_MAT_ID, 0}}; // nodes that the plugin must delegate
    uint64_t on_kernel_ = 0;                                                              // and those that it must not
};

} // namespace alloy::test
