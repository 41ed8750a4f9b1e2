#include "graph/planner.h"

#include "base/counters.h"
#include "base/options.h"
#include "base/os.h"
#include "host/ops.h"
#include "host/symbols.h"

#include <cstring>

namespace alloy::graph {

using host::op;

byte_range range_at(const void * data, size_t bytes) {
    const auto begin = reinterpret_cast<uintptr_t>(data);
    return {begin, begin + bytes};
}

byte_range range_of(const tensor * t) { return range_at(t->data, host::api().ggml_nbytes(t)); }

bool steps_meet(const step & before, const step & after) {
    auto any_meet = [](const std::vector<byte_range> & a, const std::vector<byte_range> & b) {
        return std::any_of(a.begin(), a.end(), [&](const byte_range & x) {
            return std::any_of(b.begin(), b.end(), [&](const byte_range & y) { return x.meets(y); });
        });
    };
    return any_meet(after.reads, before.writes) || any_meet(after.writes, before.writes) || any_meet(after.writes, before.reads);
}

bool is_live(const tensor * node) {
    const bool empty = std::any_of(std::begin(node->ne), std::end(node->ne), [](int64_t n) { return n <= 0; });
    return !host::is_view_op(host::op_of(node)) && (node->flags & host::flag_compute) != 0 && !empty;
}

namespace {

constexpr int64_t tokens_per_rope_task = 32;

void run_rope_table(const void * arguments, int task, int) {
    const auto & table = *static_cast<const ops::rope_table *>(arguments);
    table.fill(task * tokens_per_rope_task, std::min(table.num_tokens, (task + 1) * tokens_per_rope_task));
}

} // namespace

int use_count(const host::graph & graph, const tensor * t) {
    const host::hash_set & set = graph.visited;
    if (set.size == 0 || graph.use_counts == nullptr) return -1;
    const size_t start = (reinterpret_cast<uintptr_t>(t) >> 4) % set.size;
    for (size_t i = start;;) {
        if (((set.used[i >> 5] >> (i & 31)) & 1) == 0) return -1;
        if (set.keys[i] == t) return graph.use_counts[i];
        i = (i + 1) % set.size;
        if (i == start) return -1;
    }
}

void run_chain(const void * arguments, int task, int) {
    const auto & chain = *static_cast<const row_chain *>(arguments);
    const int64_t rows = chain.calls[0].num_rows(), begin = task * chain.rows_per_task;
    const int64_t end = std::min(rows, begin + chain.rows_per_task);
    for (int i = 0; i < chain.num_calls; i++) chain.calls[i].run(begin, end);
    if (chain.quantize != nullptr) chain.quantize->run(begin, end);
}

planner::planner(const host::graph & graph) : graph_(graph) {
    plan_.uid = graph.uid;
    plan_.nodes = graph.nodes;
    plan_.n_nodes = graph.n_nodes;
    for (int i = 0; i < graph.n_nodes; i++) {
        tensor * node = graph.nodes[i];
        if (is_live(node)) live_.push_back(node);
        produced_.insert(node);
    }
}

plan planner::make() {
    const bool own_kernels = is_on(option::kernels);
    for (size_t i = 0; i < live_.size() && plan_.failure.empty();) {
        look_at(live_[i]);
        size_t taken = own_kernels ? fuse(i) : 0;
        if (taken == 0 && own_kernels) taken = run_matrix(i);
        if (taken == 0 && own_kernels) taken = run_attention_node(i);
        if (taken == 0 && own_kernels) taken = run_single(i);
        if (taken == 0 && own_kernels) taken = run_sampling(i);
        if (taken == 0) taken = delegate(i);
        i += taken;
    }
    add_seal_steps();
    drop_barriers();
    plan_.rule_misses = misses_;
    return std::move(plan_);
}

void planner::look_at(const tensor * node) {
    note_memory(node);
    for (const tensor * source : node->src) {
        if (source != nullptr) note_memory(source);
    }
    switch (host::op_of(node)) {
        case op::get_rows: check_indices(node, node->src[1], node->src[0]->ne[1]); break;
        case op::set_rows:
            check_indices(node, node->src[1], node->ne[1]);
            look_at_cache_write(node);
            break;
        case op::rope:
            if (plan_.caches->positions == nullptr && node->src[1]->type == host::type_i32 && produced_.count(root_of(node->src[1])) == 0)
                plan_.caches->positions = node->src[1];
            break;
        case op::mul_mat_id: check_indices(node, node->src[2], node->src[0]->ne[2]); break;
        case op::mul_mat:
            if (node->src[0]->ne[2] == 1) plan_.tokens = std::max(plan_.tokens, node->ne[1]);
            break;
        default: break;
    }
}

void planner::note_memory(const tensor * t) {
    memory * m = memory_of(t);
    if (m != nullptr && std::find(plan_.memories.begin(), plan_.memories.end(), m) == plan_.memories.end()) plan_.memories.push_back(m);
}

// Indices that the graph itself computes are in range by construction; those that come from outside are checked in each run.
void planner::check_indices(const tensor * node, const tensor * indices, int64_t limit) {
    if (produced_.count(indices) != 0 || produced_.count(root_of(indices)) != 0) return;
    if (indices->type == host::type_i32 || indices->type == host::type_i64) plan_.checks.push_back({indices, limit, node});
}

kv::cache_tensor * planner::cache_of(const tensor * t) const {
    memory * m = memory_of(t);
    return m != nullptr ? m->find_cache(reinterpret_cast<uintptr_t>(t->data)) : nullptr;
}

bool planner::touches_cache(const tensor * node) const {
    if (cache_of(node) != nullptr) return true;
    return std::any_of(std::begin(node->src), std::end(node->src), [&](const tensor * s) { return s != nullptr && cache_of(s) != nullptr; });
}

size_t planner::fuse(size_t i) {
    size_t taken = 0;
#define ALLOY_RULE(name, help) \
if (taken == 0) taken = rule_##name(i);
#include "graph/rules.inc"
#undef ALLOY_RULE
    return taken;
}

bool planner::may_vanish(const tensor * t) const {
    return use_count(graph_, t) == 1 && (t->flags & host::flag_output) == 0 && t->view_src == nullptr;
}

size_t planner::rule_norm_mul(size_t i) {
    if (i + 1 >= live_.size()) return 0;
    tensor *norm = live_[i], *mul = live_[i + 1];
    const auto call = ops::make_norm_mul_call(norm, mul);
    if (!call || !may_vanish(norm) || touches_cache(norm) || touches_cache(mul)) return 0;
    // The norm's source is read while MUL's result is written: fine for the same rows, not for a shifted overlap.
    if (!rows_apart(call->a, range_of(norm->src[0]), call->out, range_of(mul)) ||
        !rows_apart(call->b, range_of(mul->src[0] == norm ? mul->src[1] : mul->src[0]), call->out, range_of(mul))) {
        misses_++;
        return 0;
    }
    look_at(mul);
    append(*call, {norm, mul}, 1);
    return 2;
}

size_t planner::run_single(size_t i) {
    tensor * node = live_[i];
    if (!can_run(node)) return 0;
    const bool is_rope = host::op_of(node) == op::rope;
    append(ops::make_row_call(node, is_rope ? table_for(node) : nullptr), {node}, 0);
    return 1;
}

const ops::rope_table * planner::table_for(const tensor * rope) {
    for (const auto & table : plan_.rope_tables) {
        if (table->serves(rope)) return table.get();
    }
    plan_.rope_tables.push_back(std::make_unique<ops::rope_table>(ops::make_rope_table(rope)));
    const ops::rope_table * table = plan_.rope_tables.back().get();
    step s;
    s.run = run_rope_table;
    s.arguments = table;
    s.num_tasks = tasks_of(table->num_tokens, tokens_per_rope_task);
    s.reads = {range_of(table->positions)};
    if (table->freq_factors != nullptr) s.reads.push_back(range_of(table->freq_factors));
    s.writes = {table_range(*table)};
    s.label = "rope_table";
    plan_.steps.push_back(std::move(s));
    return table;
}

byte_range planner::table_range(const ops::rope_table & table) {
    return range_at(table.values.get(), static_cast<size_t>(table.num_tokens * table.num_rotated) * sizeof(float));
}

// Two operands of calls with equal row counts never meet across rows: they are the same rows, or do not meet at all.
bool planner::rows_apart(const ops::row_operand & a, byte_range a_range, const ops::row_operand & b, byte_range b_range) {
    return !a_range.meets(b_range) || a == b;
}

// Whether a call may join the last chain, which it depends on row by row. `node` gives its operands as tensors.
bool planner::joins(const step & last, const row_chain & chain, const ops::row_call & call, const tensor * node) {
    bool depends = false;
    size_t w = 0; // writes of the step are those of its calls, in order
    for (int i = 0; i < chain.num_calls; i++, w++) {
        const ops::row_call & before = chain.calls[i];
        const byte_range written = last.writes[w];
        for (const tensor * source : node->src) {
            if (source == nullptr || !range_of(source).meets(written)) continue;
            if (ops::rows_of(source) != before.out && (source != ops::row_input(node) || call.a != before.out)) return false;
            depends = true;
        }
        if (!rows_apart(call.out, range_of(node), before.out, written)) return false;
    }
    for (const byte_range & read : last.reads) {
        if (!read.meets(range_of(node))) continue;
        const bool own_rows = std::any_of(chain.calls, chain.calls + chain.num_calls, [&](const ops::row_call & c) {
            return c.a == call.out || c.b == call.out;
        });
        if (!own_rows) return false;
    }
    return depends;
}

void planner::append(const ops::row_call & call, std::vector<tensor *> nodes, int fused) {
    tensor * node = nodes.back();
    std::vector<byte_range> reads;
    for (const tensor * n : nodes) {
        for (const tensor * source : n->src) {
            if (source != nullptr && source != nodes.front()) reads.push_back(range_of(source));
        }
    }
    if (call.op == rowwise_op::rope_normal || call.op == rowwise_op::rope_neox) {
        for (const auto & table : plan_.rope_tables) {
            if (reinterpret_cast<const char *>(table->values.get()) == call.b.data) reads.push_back(table_range(*table));
        }
    }
    const bool joins_last = may_join(call, node, nodes);
    if (!joins_last) {
        plan_.chains.push_back(std::make_unique<row_chain>());
        row_chain & chain = *plan_.chains.back();
        chain.rows_per_task = rows_per_task(call.k);
        step s;
        s.run = run_chain;
        s.arguments = &chain;
        s.num_tasks = tasks_of(call.num_rows(), chain.rows_per_task);
        plan_.steps.push_back(std::move(s));
    }
    step & s = plan_.steps.back();
    row_chain & chain = *plan_.chains.back();
    chain.calls[chain.num_calls++] = call;
    s.label += (s.label.empty() ? "" : " + ") + std::string(rowwise_op_name(call.op));
    s.nodes.insert(s.nodes.end(), nodes.begin(), nodes.end());
    s.fused_nodes += fused;
    s.reads.insert(s.reads.end(), reads.begin(), reads.end());
    s.writes.push_back(range_of(node));
}

// A fused pair joins like its last node would, reading what its first node reads.
bool planner::may_join(const ops::row_call & call, const tensor * node, const std::vector<tensor *> & nodes) const {
    if (plan_.steps.empty() || plan_.steps.back().run != run_chain) return false;
    const row_chain & chain = *plan_.chains.back();
    const ops::row_call & first = chain.calls[0];
    if (chain.quantize != nullptr || chain.num_calls == row_chain::max_calls || call.ne1 != first.ne1 || call.ne2 != first.ne2 || call.ne3 != first.ne3) return false;
    if (nodes.size() == 1) return joins(plan_.steps.back(), chain, call, node);
    tensor pair = *node; // the pair as one node
    pair.src[0] = nodes.front()->src[0];
    pair.src[1] = node->src[0] == nodes.front() ? node->src[1] : node->src[0];
    return joins(plan_.steps.back(), chain, call, &pair);
}

size_t planner::delegate(size_t i) {
    tensor * node = prepare(live_[i]);
    const std::vector<kv::cache_tensor *> opened = caches_to_open(live_[i]);
    for (const kv::cache_tensor * cache : opened) add_cache_step(true, *cache);
    if (plan_.steps.empty() || plan_.steps.back().run != nullptr) {
        plan_.steps.emplace_back();
        plan_.steps.back().label = "host";
    }
    step & s = plan_.steps.back();
    s.nodes.push_back(node);
    s.num_tasks = 1;
    for (const tensor * source : live_[i]->src) {
        if (source != nullptr && source->data != nullptr) s.reads.push_back(range_of(source));
    }
    s.writes.push_back(range_of(live_[i]));
    for (const kv::cache_tensor * cache : opened) add_cache_step(false, *cache);
    plan_.delegated_nodes++;
    return 1;
}

// Whether the host's repacked kernels are right for this node. They abort on activations in four dimensions or of another type, and
// take four rows for one piece of memory, whatever lies between them.
bool planner::repacked_kernel_takes(const tensor * node) {
    const op which = host::op_of(node);
    const tensor * columns = node->src[1];
    if ((which != op::mul_mat && which != op::mul_mat_id) || columns->type != host::type_f32 || columns->ne[3] != 1) return false;
    return which == op::mul_mat_id || columns->ne[1] < 4 || columns->nb[1] == static_cast<size_t>(columns->ne[0]) * sizeof(float);
}

// The node as the host shall see it: shadows or rows in place of weights.
tensor * planner::prepare(tensor * node) {
    tensor * prepared = node;
    for (int s = 0; s < host::max_src; s++) {
        const tensor * source = node->src[s];
        memory * m = source != nullptr ? memory_of(source) : nullptr;
        if (m == nullptr) continue;
        weights::weight * w = m->find_weight(source);
        if (w != nullptr && w->where == weights::layout::packed) {
            const void * rows = m->weights().plain_rows(*w);
            if (rows == nullptr) fail(source, "no memory for it as plain rows");
            plan_.clones.push_back(std::make_unique<tensor>(*source));
            tensor * plain = plan_.clones.back().get();
            const size_t offset = reinterpret_cast<uintptr_t>(source->data) - w->address;
            plain->data = const_cast<char *>(static_cast<const char *>(rows)) + offset;
            clone_of(node, prepared)->src[s] = plain;
            continue;
        }
        if (w == nullptr || w->where != weights::layout::shadow) continue;
        const bool as_matrix = s == 0 && source->view_src == nullptr && repacked_kernel_takes(node);
        if (!as_matrix) {
            if (!m->weights().make_plain(*w)) fail(source, "its layout cannot be read by this operation");
            continue;
        }
        clone_of(node, prepared)->src[s] = &w->shadow;
    }
    if (packed_weight(node) != nullptr) fail(node, "a packed weight cannot be written by a graph");
    return prepared;
}

// `prepared`, made a copy of `node` unless it is one already.
tensor * planner::clone_of(const tensor * node, tensor *& prepared) {
    if (prepared == node) {
        plan_.clones.push_back(std::make_unique<tensor>(*node));
        prepared = plan_.clones.back().get();
    }
    return prepared;
}

void planner::fail(const tensor * t, const char * why) {
    if (plan_.failure.empty()) plan_.failure = std::string(t->name) + ": " + why;
}

// A kernel step needs no barrier before it if it meets nothing that was written, and writes nothing that was touched, since the
// last barrier. The host puts its own around what it runs.
void planner::drop_barriers() {
    size_t since = 0; // first step after the last barrier
    for (size_t i = 0; i < plan_.steps.size(); i++) {
        step & s = plan_.steps[i];
        const bool beside_host = i == 0 || s.run == nullptr || plan_.steps[i - 1].run == nullptr;
        s.barrier = beside_host || needs_barrier(since, i);
        if (s.barrier) since = i;
    }
}

bool planner::needs_barrier(size_t since, size_t i) const {
    const step & s = plan_.steps[i];
    for (size_t j = since; j < i; j++) {
        const step & before = plan_.steps[j];
        if (steps_meet(before, s)) return true;
    }
    return false;
}

scratch::scratch(size_t bytes) : data_(static_cast<uint8_t *>(os::allocate(bytes))), bytes_(bytes) {}
scratch::~scratch() {
    if (data_ != nullptr) os::release(data_, bytes_);
}

plan make_plan(const host::graph & graph) { return planner(graph).make(); }

} // namespace alloy::graph
