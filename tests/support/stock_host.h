// The host's own CPU operators as the other side of a benchmark: its libraries are opened from the folder ALLOY_HOST_BIN, its
// headers are those that the build was given as ALLOY_HOST_SOURCE. Without either there is no other side.
#pragma once
#ifdef ALLOY_HOST_HEADERS
#include <ggml-cpu.h>
#include <ggml.h>

#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <string>
#include <vector>

namespace alloy::test {

#define ALLOY_HOST_BASE(use)                                                                                                  \
    use(ggml_init) use(ggml_free) use(ggml_new_tensor_2d) use(ggml_new_tensor_3d) use(ggml_new_tensor_1d)                      \
    use(ggml_new_graph_custom) use(ggml_build_forward_expand) use(ggml_rms_norm) use(ggml_mul) use(ggml_add)                   \
    use(ggml_scale_bias) use(ggml_swiglu_split) use(ggml_geglu_split) use(ggml_rope_ext)
#define ALLOY_HOST_CPU(use) use(ggml_cpu_init) use(ggml_graph_plan) use(ggml_graph_compute) use(ggml_get_type_traits_cpu)

struct stock_host {
#define ALLOY_USE(name) decltype(&::name) name = nullptr;
    ALLOY_HOST_BASE(ALLOY_USE)
    ALLOY_HOST_CPU(ALLOY_USE)
#undef ALLOY_USE
    bool present = false;

    stock_host() {
        const char * folder = std::getenv("ALLOY_HOST_BIN");
        if (!folder) return;
        void * base = dlopen((std::string(folder) + "/libggml-base.so").c_str(), RTLD_NOW | RTLD_GLOBAL);
        void * cpu = dlopen((std::string(folder) + "/libggml-cpu.so").c_str(), RTLD_NOW);
        if (!base || !cpu) {
            std::fprintf(stderr, "no host in %s: %s\n", folder, dlerror());
            return;
        }
        present = true;
#define ALLOY_USE(symbol) present = present && (symbol = reinterpret_cast<decltype(symbol)>(dlsym(base, #symbol)));
        ALLOY_HOST_BASE(ALLOY_USE)
#undef ALLOY_USE
#define ALLOY_USE(symbol) present = present && (symbol = reinterpret_cast<decltype(symbol)>(dlsym(cpu, #symbol)));
        ALLOY_HOST_CPU(ALLOY_USE)
#undef ALLOY_USE
        if (present) ggml_cpu_init();
    }
};

// A graph that repeats one operator on the same memory, so that what a graph costs besides its nodes hardly counts.
class stock_graph {
  public:
    // node(context) makes one repetition; it gives every tensor its memory with at().
    template <class Node> stock_graph(const stock_host & host, int repeats, Node node) : host_(host) {
        context_ = host.ggml_init({.mem_size = size_t(8) << 20, .mem_buffer = nullptr, .no_alloc = true});
        graph_ = host.ggml_new_graph_custom(context_, 4 * repeats, false);
        for (int i = 0; i < repeats; i++) host.ggml_build_forward_expand(graph_, node(context_));
        plan_ = host.ggml_graph_plan(graph_, 1, nullptr);
        work_.resize(plan_.work_size + 64);
        plan_.work_data = work_.data();
    }
    ~stock_graph() { host_.ggml_free(context_); }
    stock_graph(const stock_graph &) = delete;
    stock_graph & operator=(const stock_graph &) = delete;

    void run() { host_.ggml_graph_compute(graph_, &plan_); }

  private:
    const stock_host & host_;
    ggml_context * context_;
    ggml_cgraph * graph_;
    ggml_cplan plan_;
    std::vector<uint8_t> work_;
};

inline ggml_tensor * at(ggml_tensor * tensor, void * memory) {
    tensor->data = memory;
    return tensor;
}

} // namespace alloy::test
#endif
