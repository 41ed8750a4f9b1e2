// Part of the planner: what nodes do to cache tensors.
#include "graph/planner.h"

#include "host/ops.h"
#include "host/symbols.h"

namespace alloy::graph {

using host::op;

namespace {

void open_cache(const void * arguments, int thread, int num_threads) {
    const_cast<kv::cache_tensor *>(static_cast<const kv::cache_tensor *>(arguments))->open_share(thread, num_threads);
}
void close_cache(const void * arguments, int thread, int num_threads) {
    const_cast<kv::cache_tensor *>(static_cast<const kv::cache_tensor *>(arguments))->seal_share(thread, num_threads);
}
void seal_caches(const void * arguments, int, int num_threads) { static_cast<const cache_use *>(arguments)->seal(num_threads); }

byte_range range_of_cache(const kv::cache_tensor & cache) { return {cache.address(), cache.address() + cache.bytes()}; }

// A tensor of a second context that looks at the cells of the first: its own cells say nothing about what the first uses.
bool is_alias(const tensor * t) {
    for (const tensor * from = t; from != nullptr && from->view_src != nullptr; from = from->src[0]) {
        if (host::op_of(from) == op::none) return from->src[0] == nullptr;
    }
    return false;
}

} // namespace

void planner::look_at_cache_write(const tensor * node) {
    kv::cache_tensor * cache = cache_of(node);
    if (cache == nullptr) return;
    const tensor * indices = node->src[1];
    const auto row = reinterpret_cast<uintptr_t>(node->data) - cache->address();
    const bool whole_rows = node->nb[1] == cache->row_bytes() && host::api().ggml_row_size(node->type, node->ne[0]) == cache->row_bytes() &&
                            node->ne[2] == 1 && node->ne[3] == 1 && row % cache->row_bytes() == 0;
    const bool known_rows = indices->type == host::type_i64 && indices->nb[0] == sizeof(int64_t) && indices->ne[1] == 1 && indices->ne[2] == 1 &&
                            produced_.count(root_of(indices)) == 0;
    if (whole_rows && known_rows) plan_.caches->writes.push_back({cache, indices, static_cast<int64_t>(row / cache->row_bytes())});
    else cache->keep_plain("its rows are not written as a whole (flash attention is off)");
}

void planner::look_at_cache_read(const tensor * cells) {
    kv::cache_tensor * cache = cache_of(cells);
    if (cache == nullptr) return;
    const size_t offset = reinterpret_cast<uintptr_t>(cells->data) - cache->address();
    const int64_t rows_a_stream = cache->num_rows() / std::max<int64_t>(1, cache->num_streams());
    const auto first = static_cast<int64_t>(offset / cache->row_bytes()) / rows_a_stream;
    const bool says_all = offset % (cache->row_bytes() * static_cast<size_t>(rows_a_stream)) == 0 && cells->nb[1] == cache->row_bytes() && !is_alias(cells);
    plan_.caches->reads.push_back({cache, first, cells->ne[3], says_all ? cells->ne[1] : -1});
}

// Context shifts turn the keys of all cells, layer by layer.
bool planner::only_shifts_cells() const {
    return std::none_of(live_.begin(), live_.end(), [](const tensor * t) {
        const op which = host::op_of(t);
        return which == op::flash_attn_ext || which == op::soft_max || which == op::set_rows;
    });
}

// The caches that the host needs as rows for this node, opened before it and sealed again after it.
std::vector<kv::cache_tensor *> planner::caches_to_open(const tensor * node) {
    std::vector<kv::cache_tensor *> caches;
    const auto look = [&](const tensor * t) {
        kv::cache_tensor * cache = t != nullptr ? cache_of(t) : nullptr;
        if (cache != nullptr && !cache->is_plain() && std::find(caches.begin(), caches.end(), cache) == caches.end()) caches.push_back(cache);
    };
    if (host::op_of(node) == op::set_rows) return caches; // opened before the run
    look(node);
    for (const tensor * source : node->src) look(source);
    if (only_shifts_cells()) return caches;
    for (kv::cache_tensor * cache : caches) cache->keep_plain("an operation of the host needs it as rows");
    return {};
}

void planner::add_cache_step(bool open, const kv::cache_tensor & cache) {
    step s;
    s.run = open ? open_cache : close_cache;
    s.arguments = &cache;
    s.num_tasks = one_task_a_thread;
    s.writes = {range_of_cache(cache)};
    s.label = open ? "open cache" : "close cache";
    plan_.steps.push_back(std::move(s));
}

void planner::add_seal_step() {
    if (!plan_.caches->may_seal()) return;
    step s;
    s.run = seal_caches;
    s.arguments = plan_.caches.get();
    s.num_tasks = one_task_a_thread;
    for (const cache_read & r : plan_.caches->reads) s.writes.push_back(range_of_cache(*r.cache));
    s.label = "seal";
    plan_.steps.push_back(std::move(s));
}

} // namespace alloy::graph
