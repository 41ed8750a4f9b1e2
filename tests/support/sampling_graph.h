// The graph that llama.cpp adds behind the logits when it samples in the graph (llm_graph_context::build_sampling), from the host's own
// samplers, alone and on a device of choice. For tests and benchmarks that link libllama.
#pragma once
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>
#include <llama.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace alloy::test {

enum class part { biases, penalties, top_k, top_p, min_p, temperature, dynamic_temperature, draw, greedy };

// A sampler of the host with its parameters, in the order of its llama_sampler_init function.
struct sampler_part {
    part what;
    float a = 0, b = 0, c = 0;
};

inline const std::vector<int32_t> past_tokens = {3, 9, 9, 27, 81, 243, 9, 3, 700};
inline const std::vector<llama_logit_bias> some_biases = {{9, 2.0f}, {11, -100.0f}, {500, 9.0f}, {11, -50.0f}};
constexpr int32_t penalised_window = 64;

inline llama_sampler * make_chain(const std::vector<sampler_part> & parts, uint32_t seed, int32_t num_tokens) {
    llama_sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    for (const sampler_part & p : parts) {
        llama_sampler * s = nullptr;
        switch (p.what) {
            case part::biases: s = llama_sampler_init_logit_bias(num_tokens, static_cast<int32_t>(some_biases.size()), some_biases.data()); break;
            case part::penalties: s = llama_sampler_init_penalties(num_tokens, penalised_window, p.a, p.b, p.c); break;
            case part::top_k: s = llama_sampler_init_top_k(static_cast<int32_t>(p.a)); break;
            case part::top_p: s = llama_sampler_init_top_p(p.a, 0); break;
            case part::min_p: s = llama_sampler_init_min_p(p.a, 0); break;
            case part::temperature: s = llama_sampler_init_temp(p.a); break;
            case part::dynamic_temperature: s = llama_sampler_init_temp_ext(p.a, p.b, p.c); break;
            case part::draw: s = llama_sampler_init_dist(seed); break;
            case part::greedy: s = llama_sampler_init_greedy(); break;
        }
        llama_sampler_chain_add(chain, s);
    }
    for (const int32_t token : past_tokens) llama_sampler_accept(chain, token);
    return chain;
}

class sampling_graph {
  public:
    struct results {
        ggml_tensor *sampled, *probabilities, *logits, *candidates; // null where the chain has none
    };

    // A chain for each of the rows; all computed on `compute`, with `host` behind it for what it does not take.
    sampling_graph(ggml_backend_t compute, ggml_backend_t host, const std::vector<std::vector<sampler_part>> & chains, int64_t n, uint32_t seed) {
        const auto num_rows = static_cast<int64_t>(chains.size());
        nodes_ = ggml_init({.mem_size = size_t{4} << 20, .mem_buffer = nullptr, .no_alloc = true});
        rows_ = ggml_init({.mem_size = size_t{1} << 16, .mem_buffer = nullptr, .no_alloc = true});
        logits_ = ggml_new_tensor_2d(rows_, GGML_TYPE_F32, n, num_rows);
        ggml_set_output(logits_); // as in llama.cpp
        ggml_backend_buffer_type_t memory = ggml_backend_get_default_buffer_type(compute);
        row_buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(rows_, memory);
        ggml_backend_t backends[] = {compute, host};
        scheduler_ = ggml_backend_sched_new(backends, nullptr, compute == host ? 1 : 2, most_nodes, false, true);
        graph_ = ggml_new_graph_custom(nodes_, most_nodes, false);
        ggml_tensor * padded = ggml_pad(nodes_, logits_, 0, 1, 0, 0);
        for (int64_t r = 0; r < num_rows; r++) {
            llama_sampler * chain = make_chain(chains[static_cast<size_t>(r)], seed + static_cast<uint32_t>(r), static_cast<int32_t>(n));
            chains_.push_back(chain);
            chain->iface->backend_init(chain, memory, 1);
            if (chain->iface->backend_reset != nullptr) chain->iface->backend_reset(chain);
            llama_sampler_data data = {ggml_view_1d(nodes_, padded, n, static_cast<size_t>(r) * padded->nb[1]), nullptr, nullptr, nullptr};
            chain->iface->backend_apply(chain, nodes_, graph_, &data);
            for (ggml_tensor * out : {data.sampled, data.probs, data.logits, data.candidates}) {
                if (out == nullptr) continue;
                ggml_set_output(out);
                ggml_build_forward_expand(graph_, out);
            }
            results_.push_back({data.sampled, data.probs, data.logits, data.candidates});
            uniforms_.push_back({uniform_of(data.probs), 0});
        }
        for (int i = 0; i < ggml_graph_n_nodes(graph_); i++) ggml_backend_sched_set_tensor_backend(scheduler_, ggml_graph_node(graph_, i), compute);
        ok_ = ggml_backend_sched_alloc_graph(scheduler_, graph_);
    }
    ~sampling_graph() {
        for (llama_sampler * chain : chains_) llama_sampler_free(chain);
        ggml_backend_sched_free(scheduler_);
        ggml_backend_buffer_free(row_buffer_);
        ggml_free(nodes_);
        ggml_free(rows_);
    }
    sampling_graph(const sampling_graph &) = delete;
    sampling_graph & operator=(const sampling_graph &) = delete;

    void set_row(int64_t row, const std::vector<float> & x) { ggml_backend_tensor_set(logits_, x.data(), static_cast<size_t>(row) * logits_->nb[1], x.size() * sizeof(float)); }
    // The samplers give their inputs, one uniform a draw.
    void set_inputs() {
        for (llama_sampler * chain : chains_) chain->iface->backend_set_input(chain);
        for (auto & [tensor, value] : uniforms_) {
            if (tensor != nullptr) ggml_backend_tensor_get(tensor, &value, 0, sizeof(value));
        }
    }
    bool compute() { return ok_ && ggml_backend_sched_graph_compute(scheduler_, graph_) == GGML_STATUS_SUCCESS; }

    int num_nodes() const { return ggml_graph_n_nodes(graph_); }
    const results & of_row(int64_t row) const { return results_[static_cast<size_t>(row)]; }
    float uniform(int64_t row) const { return uniforms_[static_cast<size_t>(row)].second; } // of the row's draw in this run
    template <class T> static std::vector<T> get(const ggml_tensor * t) {
        std::vector<T> x(t != nullptr ? static_cast<size_t>(ggml_nelements(t)) : 0);
        if (t != nullptr) ggml_backend_tensor_get(t, x.data(), 0, x.size() * sizeof(T));
        return x;
    }

  private:
    static constexpr size_t most_nodes = 1024;
    // Of SUB(CUMSUM(SOFT_MAX), uniform).
    const ggml_tensor * uniform_of(const ggml_tensor * shares) const {
        for (int i = 0; shares != nullptr && i < ggml_graph_n_nodes(graph_); i++) {
            const ggml_tensor * t = ggml_graph_node(graph_, i);
            if (t->op == GGML_OP_SUB && t->src[0]->op == GGML_OP_CUMSUM && t->src[0]->src[0] == shares) return t->src[1];
        }
        return nullptr;
    }

    ggml_context *nodes_, *rows_;
    ggml_tensor * logits_;
    ggml_backend_buffer_t row_buffer_;
    ggml_backend_sched_t scheduler_;
    ggml_cgraph * graph_;
    std::vector<llama_sampler *> chains_;
    std::vector<results> results_;
    std::vector<std::pair<const ggml_tensor *, float>> uniforms_;
    bool ok_ = false;
};

} // namespace alloy::test
