// The host's own CPU operators as the other side of a benchmark: its libraries are opened from the folder ALLOY_HOST_BIN, its
// headers are those that the build was given as ALLOY_HOST_SOURCE. Without either there is no other side.
#pragma once
#ifdef ALLOY_HOST_HEADERS
#include <ggml-backend.h>
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
    use(ggml_flash_attn_ext) use(ggml_mul_mat_set_hint) use(ggml_scale_bias) use(ggml_swiglu_split) use(ggml_geglu_split) use(ggml_rope_ext) use(ggml_mul_mat)                    \
    use(ggml_backend_buft_alloc_buffer) use(ggml_backend_buft_get_alloc_size) use(ggml_backend_buffer_get_base)               \
    use(ggml_backend_buffer_free) use(ggml_backend_buffer_set_usage) use(ggml_backend_tensor_alloc)                           \
    use(ggml_backend_tensor_set) use(ggml_backend_dev_supports_op) use(ggml_backend_reg_dev_get)                              \
    use(ggml_backend_cpu_buffer_type) use(ggml_nbytes) use(ggml_backend_reg_get_proc_address)
#define ALLOY_HOST_CPU(use)                                                                                                   \
    use(ggml_cpu_init) use(ggml_graph_plan) use(ggml_graph_compute) use(ggml_get_type_traits_cpu) use(ggml_backend_cpu_reg)

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

inline ggml_tensor * at(ggml_tensor * tensor, void * memory);

// Copies of one matrix in the layout that the host's own loader would choose: its first repacking buffer type that takes them, else
// plain rows.
class stock_weights {
  public:
    stock_weights(const stock_host & host, int type, int64_t k, int64_t m, int64_t copies, const void * gguf) : host_(host) {
        context_ = host.ggml_init({.mem_size = size_t(1) << 20, .mem_buffer = nullptr, .no_alloc = true});
        for (int64_t i = 0; i < copies; i++) tensors_.push_back(host.ggml_new_tensor_2d(context_, static_cast<ggml_type>(type), k, m));
        ggml_backend_buffer_type_t chosen = host.ggml_backend_cpu_buffer_type();
        ggml_backend_reg_t reg = host.ggml_backend_cpu_reg();
        ggml_backend_dev_t device = host.ggml_backend_reg_dev_get(reg, 0);
        auto * extra = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
            host.ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts"));
        for (auto * types = extra ? extra(device) : nullptr; types && *types; types++) {
            if (takes(device, *types, k)) {
                chosen = *types;
                break;
            }
        }
        const size_t size = host.ggml_backend_buft_get_alloc_size(chosen, tensors_[0]);
        const size_t stride = (size + 63) / 64 * 64;
        buffer_ = host.ggml_backend_buft_alloc_buffer(chosen, stride * static_cast<size_t>(copies) + 64);
        host.ggml_backend_buffer_set_usage(buffer_, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        auto * base = static_cast<char *>(host.ggml_backend_buffer_get_base(buffer_));
        for (size_t i = 0; i < tensors_.size(); i++) {
            host.ggml_backend_tensor_alloc(buffer_, tensors_[i], base + i * stride);
            host.ggml_backend_tensor_set(tensors_[i], gguf, 0, host.ggml_nbytes(tensors_[i]));
        }
    }
    ~stock_weights() {
        host_.ggml_backend_buffer_free(buffer_);
        host_.ggml_free(context_);
    }
    stock_weights(const stock_weights &) = delete;
    stock_weights & operator=(const stock_weights &) = delete;

    ggml_tensor * tensor(int64_t copy) const { return tensors_[static_cast<size_t>(copy) % tensors_.size()]; }

  private:
    bool takes(ggml_backend_dev_t device, ggml_backend_buffer_type_t type, int64_t k) {
        ggml_tensor * x = host_.ggml_new_tensor_2d(context_, GGML_TYPE_F32, k, 512);
        ggml_tensor * node = host_.ggml_mul_mat(context_, tensors_[0], x);
        tensors_[0]->buffer = host_.ggml_backend_buft_alloc_buffer(type, 0);
        const bool yes = host_.ggml_backend_dev_supports_op(device, node);
        host_.ggml_backend_buffer_free(tensors_[0]->buffer);
        tensors_[0]->buffer = nullptr;
        return yes;
    }

    const stock_host & host_;
    ggml_context * context_;
    std::vector<ggml_tensor *> tensors_;
    ggml_backend_buffer_t buffer_;
};

inline ggml_tensor * at(ggml_tensor * tensor, void * memory) {
    tensor->data = memory;
    return tensor;
}

} // namespace alloy::test
#endif
