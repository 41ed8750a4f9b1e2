// Part of the planner: attention, what its masks show, and the memory that it works in.
#include "graph/planner.h"

#include "base/options.h"
#include "base/os.h"
#include "host/ops.h"
#include "host/symbols.h"

namespace alloy::graph {

using host::op;

namespace {

constexpr int64_t rows_per_mask_task = 32;

void run_mask_map(const void * arguments, int task, int) {
    const auto & map = *static_cast<const ops::mask_map *>(arguments);
    map.fill(task * rows_per_mask_task, std::min(map.num_rows, (task + 1) * rows_per_mask_task));
}
void run_attention(const void * arguments, int thread, int num_threads) {
    static_cast<const ops::attention_call *>(arguments)->run(thread, num_threads);
}
void join_attention(const void * arguments, int thread, int num_threads) {
    static_cast<const ops::attention_call *>(arguments)->join(thread, num_threads);
}

ops::attention_precision wanted_precision() {
    const std::string wanted = text_of(option::attention);
    if (wanted == "exact") return ops::attention_precision::exact;
    return wanted == "int8" ? ops::attention_precision::int8 : ops::attention_precision::automatic;
}

} // namespace

size_t planner::run_attention_node(size_t i) {
    tensor * node = live_[i];
    return host::op_of(node) == op::flash_attn_ext && ops::can_run_attention(node) && add_attention({node}, node, 0) ? 1 : 0;
}

// The host rotates what it stores in quantised caches, so the output comes rotated, and is turned back by a product with the
// Hadamard matrix.
size_t planner::rule_attention_hadamard(size_t i) {
    if (i + 1 >= live_.size()) return 0;
    tensor *node = live_[i], *turned = live_[i + 1];
    if (host::op_of(node) != op::flash_attn_ext || host::op_of(turned) != op::mul_mat || !ops::can_run_attention(node) || !can_run(turned)) return 0;
    const tensor * flat = ops::row_input(turned);
    const bool is_whole_output = flat != nullptr && flat->view_src == node && flat->data == node->data &&
                                 host::api().ggml_nbytes(flat) == host::api().ggml_nbytes(node);
    if (!is_whole_output || node->ne[0] % turned->ne[0] != 0 || !may_vanish(node) || use_count(graph_, flat) != 1) return 0;
    tensor out = *node;
    out.data = turned->data;
    // Queries are read before the rows made from them are written, so both may have the same place; nothing else may.
    const byte_range written = range_of(turned);
    bool apart = !range_of(node->src[0]).meets(written) || ops::queries_lie_as_output(node, &out);
    for (int s = 1; s < host::max_src; s++) apart = apart && (node->src[s] == nullptr || !range_of(node->src[s]).meets(written));
    if (!apart) {
        misses_++;
        return 0;
    }
    look_at(turned);
    plan_.clones.push_back(std::make_unique<tensor>(out));
    return add_attention({node, turned}, plan_.clones.back().get(), turned->ne[0]) ? 2 : 0;
}

// The steps of one attention node, whose rows go to `out`, in groups of `rotate_out` turned back. False: no memory.
bool planner::add_attention(std::vector<tensor *> nodes, const tensor * out, int64_t rotate_out) {
    tensor * node = nodes.front();
    if (attention_memory_.max_threads == 0) make_attention_memory();
    if (attention_memory_.data == nullptr) return false;
    const ops::mask_map * map = mask_map_for(node);
    balance_keys(node);
    plan_.attentions.push_back(
        ops::make_attention_call(node, out, map, cells_of(node->src[1]), cells_of(node->src[2]), wanted_precision(), rotate_out, attention_memory_));
    sample_attention(node, *plan_.attentions.back());
    const ops::attention_call * call = plan_.attentions.back().get();
    const byte_range work = range_at(attention_memory_.data, bytes_of(attention_memory_));
    step s;
    s.run = run_attention;
    s.arguments = call;
    s.num_tasks = one_task_a_thread;
    for (const tensor * source : node->src) {
        if (source != nullptr) s.reads.push_back(range_of(source));
    }
    s.reads.push_back(sight_range(*map));
    s.writes = {work};
    s.label = std::string("attention ") + cell_type_name(call->keys.declared) + (call->int8 ? " int8" : "");
    step * last = &s;
    step join;
    if (call->few) {
        join.run = join_attention;
        join.arguments = call;
        join.num_tasks = one_task_a_thread;
        join.reads = {work};
        if (node->src[4] != nullptr) join.reads.push_back(range_of(node->src[4]));
        join.label = "join";
        last = &join;
    }
    if (call->sample != nullptr) {
        const byte_range sampled = sample_range(*call->sample);
        s.writes.push_back(sampled);
        if (last != &s) last->writes.push_back(sampled);
    }
    last->writes.push_back(range_of(nodes.back()));
    last->fused_nodes = static_cast<int>(nodes.size()) - 1;
    if (rotate_out > 0) last->label += " + hadamard";
    last->nodes = std::move(nodes);
    plan_.steps.push_back(std::move(s));
    if (join.run != nullptr) plan_.steps.push_back(std::move(join));
    return true;
}

kv::kv_view planner::cells_of(const tensor * t) {
    look_at_cache_read(t);
    kv::cache_tensor * cache = cache_of(t);
    return cache != nullptr ? cache->view(*t) : kv::plain_view(*t);
}

// A host may use more threads than there are processors; those that find no memory leave the work to the others.
void planner::make_attention_memory() {
    attention_memory_.max_threads = 2 * os::usable_cpus() + 2;
    for (const tensor * node : live_) {
        if (!ops::can_run_attention(node)) continue;
        attention_memory_.floats = std::max(attention_memory_.floats, ops::attention_memory_floats(node, attention_memory_.max_threads));
    }
    plan_.scratches.push_back(std::make_unique<scratch>(bytes_of(attention_memory_)));
    attention_memory_.data = reinterpret_cast<float *>(plan_.scratches.back()->data());
}

byte_range planner::sight_range(const ops::mask_map & map) {
    return range_at(map.sight.get(), static_cast<size_t>(map.num_rows * map.num_blocks));
}

const ops::mask_map * planner::mask_map_for(const tensor * node) {
    for (const auto & map : plan_.mask_maps) {
        if (map->serves(node)) return map.get();
    }
    plan_.mask_maps.push_back(std::make_unique<ops::mask_map>(ops::make_mask_map(node)));
    const ops::mask_map * map = plan_.mask_maps.back().get();
    step s;
    s.run = run_mask_map;
    s.arguments = map;
    s.num_tasks = tasks_of(map->num_rows, rows_per_mask_task);
    if (map->mask != nullptr) s.reads = {range_of(map->mask)};
    s.writes = {sight_range(*map)};
    s.label = "mask map";
    plan_.steps.push_back(std::move(s));
    return map;
}

} // namespace alloy::graph
