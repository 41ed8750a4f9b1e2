// Part of the planner: what nodes do to cache tensors.
#include "graph/planner.h"

#include "host/ops.h"
#include "host/symbols.h"
#include "ops/operands.h"

namespace alloy::graph {

using host::op;

namespace {

void open_cache(const void * arguments, int thread, int num_threads) {
    const_cast<kv::cache_tensor *>(static_cast<const kv::cache_tensor *>(arguments))->open_share(thread, num_threads);
}
void close_cache(const void * arguments, int thread, int num_threads) {
    const_cast<kv::cache_tensor *>(static_cast<const kv::cache_tensor *>(arguments))->seal_share(thread, num_threads);
}
void measure_heads(const void * arguments, int, int num_threads) { static_cast<const cache_use *>(arguments)->measure(num_threads); }
void assign_rates(const void * arguments, int, int) { static_cast<const cache_use *>(arguments)->assign(); }
void weigh_cells(const void * arguments, int, int num_threads) { static_cast<const cache_use *>(arguments)->weigh_cells(num_threads); }
void choose_cells(const void * arguments, int, int) { static_cast<const cache_use *>(arguments)->choose_cells(); }
void evict_cells(const void * arguments, int, int num_threads) { static_cast<const cache_use *>(arguments)->evict(num_threads); }
void seal_caches(const void * arguments, int, int num_threads) { static_cast<const cache_use *>(arguments)->seal(num_threads); }

byte_range range_of_cache(const kv::cache_tensor & cache) { return {cache.address(), cache.address() + cache.bytes()}; }

// A tensor of a second context that looks at the cells of the first: its own cells say nothing about what the first uses.
bool is_alias(const tensor * t) {
    for (const tensor * from = t; from != nullptr && from->view_src != nullptr; from = from->src[0]) {
        if (host::op_of(from) == op::none) return from->src[0] == nullptr;
    }
    return false;
}

// What rows of queries or keys were computed with before they are as attention sees them.
struct normed_rows {
    const tensor * weights = nullptr; // of the norm, or null
    const tensor * rope = nullptr;
};

normed_rows find_norm(const tensor * t) {
    normed_rows found;
    for (t = host::computed(t); t != nullptr; t = host::computed(t->src[0])) {
        const op which = host::op_of(t);
        if (which == op::rope) found.rope = t;
        if (which == op::mul && host::op_of(host::computed(t->src[0])) == op::rms_norm) found.weights = t->src[1];
        if (which != op::rope && which != op::scale) break;
    }
    return found;
}

bool weights_of(const normed_rows & rows, int64_t d, int64_t heads, kv::norm_weights & weights) {
    const tensor * w = rows.weights;
    const bool known = w != nullptr && w->data != nullptr && host::op_of(w) == op::none && ops::has_float_rows(w) &&
                       (w->ne[0] == d || w->ne[0] == d * heads) && ops::num_elements(w) == w->ne[0];
    if (known) weights = {static_cast<const float *>(w->data), w->ne[0], heads};
    return known;
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
    else {
        cache->expect_unseen_writes();
        if (cache->fits_as_rows()) cache->keep_plain("its rows are not written as a whole (flash attention is off)");
        else fail(node, "no memory for its KV cache as rows");
    }
}

void planner::look_at_cache_read(const tensor * cells) {
    kv::cache_tensor * cache = cache_of(cells);
    if (cache == nullptr) return;
    const size_t offset = reinterpret_cast<uintptr_t>(cells->data) - cache->address();
    const int64_t rows_a_stream = cache->rows_a_stream();
    const auto first = static_cast<int64_t>(offset / cache->row_bytes()) / rows_a_stream;
    const bool says_all = offset % (cache->row_bytes() * static_cast<size_t>(rows_a_stream)) == 0 && cells->nb[1] == cache->row_bytes() && !is_alias(cells);
    if (!says_all) cache->evicted().refuse("another context, or a part of the graph, looks at some of the cells");
    plan_.caches->reads.push_back({cache, first, cells->ne[3], says_all ? cells->ne[1] : -1});
}

// Where queries and keys pass norms, their weights tell which channels are large.
void planner::balance_keys(const tensor * attention) {
    kv::cache_tensor *keys = cache_of(attention->src[1]), *values = cache_of(attention->src[2]);
    if (values != nullptr && !values->balance().is_none()) values->keep_plain("its keys serve as values too");
    if (keys == nullptr || keys == values || keys->is_plain() || keys->d() != 0) return;
    const auto written = std::find_if(live_.begin(), live_.end(), [&](const tensor * t) { return host::op_of(t) == op::set_rows && cache_of(t) == keys; });
    if (written == live_.end()) return;
    const int64_t d = attention->src[1]->ne[0];
    const normed_rows of_queries = find_norm(attention->src[0]), of_keys = find_norm((*written)->src[0]);
    kv::norm_weights weights[2];
    if (!weights_of(of_queries, d, attention->src[0]->ne[2], weights[0]) || !weights_of(of_keys, d, attention->src[1]->ne[2], weights[1])) return;
    kv::turned_channels turned;
    if (of_keys.rope != nullptr) turned = {std::min<int64_t>(of_keys.rope->op_params[1], d), of_keys.rope->op_params[2] != host::rope_normal};
    keys->balance_by({weights[0], weights[1], d, turned});
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
    if (caches.empty() || only_shifts_cells()) return caches;
    if (kv::cache_tensor * written = cache_of(node)) written->expect_unseen_writes();
    for (kv::cache_tensor * cache : caches) {
        if (cache->fits_as_rows()) cache->keep_plain("an operation of the host needs it as rows");
        else fail(node, "no memory for its KV cache as rows");
    }
    return {};
}

void planner::add_cache_step(bool open, const kv::cache_tensor & cache) {
    step s;
    if (open) plan_.caches->opened.push_back(const_cast<kv::cache_tensor *>(&cache));
    s.run = open ? open_cache : close_cache;
    s.arguments = &cache;
    s.num_tasks = one_task_a_thread;
    s.writes = {range_of_cache(cache)};
    s.label = open ? "open cache" : "close cache";
    plan_.steps.push_back(std::move(s));
}

void planner::add_seal_steps() {
    if (!plan_.caches->may_seal()) return;
    const auto add = [&](void (*run)(const void *, int, int), int tasks, const char * label) {
        step s;
        s.run = run;
        s.arguments = plan_.caches.get();
        s.num_tasks = tasks;
        for (const cache_read & r : plan_.caches->reads) s.writes.push_back(range_of_cache(*r.cache));
        for (const auto & layer : plan_.caches->sampled) s.reads.push_back(sample_range(layer->sample));
        s.label = label;
        plan_.steps.push_back(std::move(s));
    };
    const bool sampled = !plan_.caches->sampled.empty();
    if (sampled && plan_.caches->sampled.front()->keys->rates().on()) {
        add(measure_heads, one_task_a_thread, "measure heads");
        add(assign_rates, 1, "assign rates");
    }
    add(seal_caches, one_task_a_thread, "seal");
    if (sampled && plan_.caches->sampled.front()->keys->evicted().on()) {
        add(weigh_cells, one_task_a_thread, "weigh cells");
        add(choose_cells, 1, "choose cells");
        add(evict_cells, one_task_a_thread, "evict");
    }
}

// Where heads have bits or cells of their own, attention can be sampled.
void planner::sample_attention(const tensor * node, ops::attention_call & call) {
    kv::cache_tensor *keys = cache_of(node->src[1]), *values = cache_of(node->src[2]);
    const bool compressed = keys != nullptr && values != nullptr && !keys->is_plain() && !values->is_plain();
    if (!compressed || (!keys->rates().on() && !keys->evicted().on())) return;
    if (call.softcap != 0 || call.max_bias != 0) return keys->evicted().refuse("its attention has a softcap or ALiBi");
    for (const auto & layer : plan_.caches->sampled) { // layers may share a cache; one thread measures it
        if (layer->keys == keys || layer->values == values) return;
    }
    plan_.caches->sampled.push_back(std::make_unique<sampled_layer>(sampled_layer{keys, values, node->src[0]->ne[1], {}}));
    kv::attention_sample & sample = plan_.caches->sampled.back()->sample;
    sample.heads = call.shape.heads;
    sample.kv_heads = call.shape.kv_heads;
    sample.d_k = call.shape.d_k;
    sample.d_v = keys->rates().on() ? call.shape.d_v : 0;
    sample.scale = call.scale;
    call.sample = &sample;
    keys->pair_with(*values);
}

// Stands for all that a sample holds.
byte_range planner::sample_range(const kv::attention_sample & sample) { return range_at(&sample, sizeof(sample)); }

} // namespace alloy::graph
