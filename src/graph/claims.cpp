#include "graph/claims.h"

#include "graph/memory.h"
#include "host/cpu.h"
#include "host/ops.h"
#include "host/symbols.h"

namespace alloy::graph {
namespace {

using host::op;

// Known to lie in memory that is not ours. No buffer yet (embedding models cast K, test-backend-ops asks before it allocates) is not
// foreign: then the shape decides.
bool is_foreign(const host::tensor * t) {
    if (t == nullptr) return false;
    const host::buffer * buffer = root_of(t)->buffer;
    return buffer != nullptr && !is_own(buffer);
}

bool is_host_memory(const host::tensor * t) {
    const host::buffer * buffer = root_of(t)->buffer;
    return buffer == nullptr || is_own(buffer) || host::api().ggml_backend_buft_is_host(buffer->buft);
}

// A cache that the user keeps in host memory (-nkvo) belongs to whoever runs the layer; else its attention would leave this device
// and the host would turn flash attention off for the whole context.
bool is_host_cache_of_our_layer(const host::tensor * t) {
    kv::cache_name name;
    return kv::parse_cache_name(root_of(t)->name, name) && is_host_memory(t) && weights::owns_layer(name.layer);
}

// Weights of the input layer always lie in host memory; taking them keeps a fully offloaded model in one piece.
bool is_input_weight(const host::tensor * t) {
    return is_host_memory(t) && weights::layer_of(root_of(t)->name) < 0 && weights::owns_layer(0);
}

bool is_foreign_weight(const host::tensor * t) { return is_foreign(t) && root_of(t)->buffer->usage == host::usage_weights; }

} // namespace

bool claims(const host::tensor * node) {
    const op which = host::op_of(node);
    if (host::is_view_op(which)) return true;

    // Operations follow the data they are anchored to: attention its keys and values, writes their destination, products their matrix.
    auto anchored_elsewhere = [](const host::tensor * t) { return is_foreign(t) && !is_host_cache_of_our_layer(t); };
    if (node->view_src != nullptr && anchored_elsewhere(node)) return false;
    switch (which) {
        case op::flash_attn_ext:
            if (anchored_elsewhere(node->src[1]) || anchored_elsewhere(node->src[2])) return false;
            break;
        case op::set_rows:
            if (anchored_elsewhere(node->src[2])) return false;
            break;
        case op::cpy:
            if (node->src[1] != node && anchored_elsewhere(node->src[1])) return false;
            break;
        case op::mul_mat:
        case op::mul_mat_id:
            // A matrix without a buffer is a product of the graph; one in foreign memory is a weight or a cache of somebody else's layer.
            if (is_foreign(node->src[0]) && !is_host_cache_of_our_layer(node->src[0])) {
                const host::buffer * buffer = root_of(node->src[0])->buffer;
                const bool graph_input = (root_of(node->src[0])->flags & host::flag_input) != 0 && buffer->usage != host::usage_weights;
                if (!graph_input) return false;
            }
            break;
        default: break;
    }
    for (const host::tensor * source : node->src) {
        if (source == nullptr) continue;
        if (!is_host_memory(source)) return false;
        if (is_foreign_weight(source) && !is_input_weight(source)) return false;
    }
    // The loader's probe: the weight stands in an empty candidate buffer.
    const host::tensor * weight = node->src[0];
    if (weight != nullptr && is_own(weight->buffer) && weight->buffer->size == 0) weights::note_offer(node);
    return host::cpu_supports(node);
}

} // namespace alloy::graph
