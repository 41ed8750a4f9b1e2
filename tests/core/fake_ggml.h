// A small stand-in for the host: the functions of host/symbols.inc with just enough behaviour for buffers, plans and sessions, and
// knobs to misbehave. Test programs export it (-rdynamic), so the plugin's own symbol lookup finds it.
#pragma once
#include "host/abi_v3.h"
#include "host/ops.h"

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

namespace fake {

using alloy::host::tensor;

struct host_state {
    std::string version = "0.26.0";
    int api_version = 3;
    std::string renamed_op;              // this operation gets another name
    size_t tensor_overhead = 32 + sizeof(tensor);
    bool has_cpu = true;
    bool repacks = false;                // offer one repacking buffer type
    std::string repack_name = "CPU_REPACK";
    int status = 0;                      // what the fake CPU backend returns
    std::vector<std::string> log;        // lines given to the host's logger
    std::vector<std::string> ran;        // names of the nodes the fake CPU backend ran; "CUSTOM" for steps of ours
    int threads = 1;                     // how many threads it pretends to have
};
host_state & state();
void reset();

// Resolves the table and the op numbers against this fake. Every test fixture calls it.
void connect();

// Graphs on the stack of a test.
class graph_builder {
  public:
    tensor * leaf(const char * name, int type, std::vector<int64_t> ne, void * data = nullptr); // data null: own zeroed memory
    tensor * node(alloy::host::op op, const char * name, std::vector<int64_t> ne, std::vector<tensor *> sources);
    tensor * view(tensor * of, const char * name, std::vector<int64_t> ne);
    void set_param(tensor * t, int slot, float value);
    // The graph over all nodes made so far, with use counts.
    alloy::host::graph & graph(uint64_t uid = 0);
    std::vector<float> & memory_of(const tensor * t);

  private:
    tensor * make(const char * name, int type, const std::vector<int64_t> & ne, void * data);
    std::deque<tensor> tensors_;
    std::deque<std::vector<float>> memory_;
    std::vector<tensor *> nodes_;
    std::vector<tensor *> keys_;
    std::vector<uint32_t> used_;
    std::vector<int32_t> use_counts_;
    alloy::host::graph graph_{};
};

size_t type_bytes(int type);
alloy::host::buffer_type * repack_type(); // xors every byte with 0x5a and interleaves 4 rows by bytes
alloy::host::buffer_type * plain_type();

} // namespace fake
