// Walks a graph once: fusion rules, then single operators, then whatever is left to the host's CPU backend.
#include "graph/plan.h"

#include "base/counters.h"
#include "base/options.h"
#include "base/os.h"
#include "host/ops.h"
#include "host/symbols.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>

namespace alloy::graph {

using host::op;
using host::tensor;

byte_range range_of(const tensor * t) {
    const auto begin = reinterpret_cast<uintptr_t>(t->data);
    return {begin, begin + host::api().ggml_nbytes(t)};
}

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

// A task should cover at least this much work: about 5 us, ten times what handing it to another thread costs.
constexpr int64_t elements_per_task = 16384;
int64_t rows_per_task(int64_t k) { return std::max<int64_t>(1, elements_per_task / k); }

void run_chain(const void * arguments, int task, int) {
    const auto & chain = *static_cast<const row_chain *>(arguments);
    const int64_t rows = chain.calls[0].num_rows(), begin = task * chain.rows_per_task;
    const int64_t end = std::min(rows, begin + chain.rows_per_task);
    for (int i = 0; i < chain.num_calls; i++) chain.calls[i].run(begin, end);
    if (chain.quantize != nullptr) chain.quantize->run(begin, end);
}

constexpr int64_t tokens_per_rope_task = 32;

void run_rope_table(const void * arguments, int task, int) {
    const auto & table = *static_cast<const ops::rope_table *>(arguments);
    table.fill(task * tokens_per_rope_task, std::min(table.num_tokens, (task + 1) * tokens_per_rope_task));
}

void run_quantize(const void * arguments, int task, int) {
    const auto & call = *static_cast<const ops::quantize_call *>(arguments);
    const int64_t rows = rows_per_task(call.source->ne[0]);
    call.run(task * rows, std::min(call.num_rows(), (task + 1) * rows));
}

void run_mul_mat(const void * arguments, int, int num_threads) {
    static_cast<const ops::mul_mat_call *>(arguments)->run(num_threads);
}
void run_grouping(const void * arguments, int, int) {
    const_cast<ops::mul_mat_id_call *>(static_cast<const ops::mul_mat_id_call *>(arguments))->group();
}
void run_mul_mat_id(const void * arguments, int, int num_threads) {
    static_cast<const ops::mul_mat_id_call *>(arguments)->run(num_threads);
}

constexpr int64_t rows_per_mask_task = 32;

void run_mask_map(const void * arguments, int task, int) {
    const auto & map = *static_cast<const ops::mask_map *>(arguments);
    map.fill(task * rows_per_mask_task, std::min(map.num_rows, (task + 1) * rows_per_mask_task));
}
void run_attention(const void * arguments, int thread, int num_threads) {
    const_cast<ops::attention_call *>(static_cast<const ops::attention_call *>(arguments))->run(thread, num_threads);
}
void join_attention(const void * arguments, int thread, int num_threads) {
    static_cast<const ops::attention_call *>(arguments)->join(thread, num_threads);
}

// How often other nodes of the whole graph (not only this part) read `t`; -1 when the graph does not say.
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

class planner {
  public:
    explicit planner(const host::graph & graph) : graph_(graph) {
        plan_.uid = graph.uid;
        plan_.nodes = graph.nodes;
        plan_.n_nodes = graph.n_nodes;
        for (int i = 0; i < graph.n_nodes; i++) {
            tensor * node = graph.nodes[i];
            if (is_live(node)) live_.push_back(node);
            produced_.insert(node);
        }
    }

    plan make() {
        const bool own_kernels = is_on(option::kernels);
        for (size_t i = 0; i < live_.size() && plan_.failure.empty();) {
            look_at(live_[i]);
            size_t taken = own_kernels ? fuse(i) : 0;
            if (taken == 0 && own_kernels) taken = run_matrix(i);
            if (taken == 0 && own_kernels) taken = run_attention_node(i);
            if (taken == 0 && own_kernels) taken = run_single(i);
            if (taken == 0) taken = delegate(i);
            i += taken;
        }
        drop_barriers();
        plan_.rule_misses = misses_;
        return std::move(plan_);
    }

  private:
    // --- facts about a node that every run must know --------------------------------------------------------------------------------
    void look_at(const tensor * node) {
        note_memory(node);
        for (const tensor * source : node->src) {
            if (source != nullptr) note_memory(source);
        }
        switch (host::op_of(node)) {
            case op::get_rows: check_indices(node, node->src[1], node->src[0]->ne[1]); break;
            case op::set_rows: check_indices(node, node->src[1], node->ne[1]); break;
            case op::mul_mat_id: check_indices(node, node->src[2], node->src[0]->ne[2]); break;
            case op::mul_mat:
                if (node->src[0]->ne[2] == 1) plan_.tokens = std::max(plan_.tokens, node->ne[1]);
                break;
            default: break;
        }
    }

    void note_memory(const tensor * t) {
        memory * m = memory_of(t);
        if (m != nullptr && std::find(plan_.memories.begin(), plan_.memories.end(), m) == plan_.memories.end()) plan_.memories.push_back(m);
    }

    // Indices that the graph itself computes are in range by construction; those that come from outside are checked in each run.
    void check_indices(const tensor * node, const tensor * indices, int64_t limit) {
        if (produced_.count(indices) != 0 || produced_.count(root_of(indices)) != 0) return;
        if (indices->type == host::type_i32 || indices->type == host::type_i64) plan_.checks.push_back({indices, limit, node});
    }

    kv::cache_tensor * cache_of(const tensor * t) const {
        memory * m = memory_of(t);
        return m != nullptr ? m->find_cache(reinterpret_cast<uintptr_t>(t->data)) : nullptr;
    }

    bool touches_cache(const tensor * node) const {
        if (cache_of(node) != nullptr) return true;
        return std::any_of(std::begin(node->src), std::end(node->src), [&](const tensor * s) { return s != nullptr && cache_of(s) != nullptr; });
    }

    // --- fusion -----------------------------------------------------------------------------------------------------------------------
    size_t fuse(size_t i) {
        size_t taken = 0;
#define ALLOY_RULE(name, help) \
    if (taken == 0) taken = rule_##name(i);
#include "graph/rules.inc"
#undef ALLOY_RULE
        return taken;
    }

    size_t rule_norm_mul(size_t i) {
        if (i + 1 >= live_.size()) return 0;
        tensor *norm = live_[i], *mul = live_[i + 1];
        const auto call = ops::make_norm_mul_call(norm, mul);
        if (!call || use_count(graph_, norm) != 1 || (norm->flags & host::flag_output) != 0 || norm->view_src != nullptr ||
            touches_cache(norm) || touches_cache(mul)) {
            return 0;
        }
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

    bool can_run(const tensor * node) const { return ops::can_run_rowwise(node) && !touches_cache(node) && !touches_packed(node); }

    // --- products -----------------------------------------------------------------------------------------------------------------------
    static weights::weight * packed_weight(const tensor * t) {
        memory * m = t != nullptr ? memory_of(t) : nullptr;
        weights::weight * w = m != nullptr ? m->find_weight(t) : nullptr;
        return w != nullptr && w->where == weights::layout::packed ? w : nullptr;
    }

    static bool touches_packed(const tensor * node) {
        if (packed_weight(node) != nullptr) return true;
        return std::any_of(std::begin(node->src), std::end(node->src), [](const tensor * s) { return packed_weight(s) != nullptr; });
    }

    // The weight of a MUL_MAT that a kernel of ours runs, or null.
    const weights::weight * weight_of_product(const tensor * node) const {
        if (host::op_of(node) != op::mul_mat || touches_cache(node)) return nullptr;
        const weights::weight * w = packed_weight(node->src[0]);
        return w != nullptr && ops::can_run_mul_mat(node, *w) ? w : nullptr;
    }

    size_t run_matrix(size_t i) {
        tensor * node = live_[i];
        if (const weights::weight * w = weight_of_product(node)) {
            const uint8_t * quantized = nullptr;
            if (!quantized_columns(node, *w, quantized)) return 0;
            plan_.mul_mats.push_back(ops::make_mul_mat_call(node, *w, quantized, node));
            add_product(run_mul_mat, plan_.mul_mats.back().get(), {node}, *w, quantized);
            return 1;
        }
        if (host::op_of(node) != op::mul_mat_id || touches_cache(node)) return 0;
        const weights::weight * w = packed_weight(node->src[0]);
        const uint8_t * quantized = nullptr;
        if (w == nullptr || !ops::can_run_mul_mat_id(node, *w) || !quantized_columns(node, *w, quantized)) return 0;
        plan_.mul_mat_ids.push_back(ops::make_mul_mat_id_call(node, *w, quantized));
        ops::mul_mat_id_call * call = plan_.mul_mat_ids.back().get();
        const auto begin = reinterpret_cast<uintptr_t>(call);
        const byte_range grouped{begin, begin + sizeof(*call)}; // stands for what group() writes
        step s;
        s.run = run_grouping;
        s.arguments = call;
        s.num_tasks = 1;
        s.reads = {range_of(node->src[2])};
        s.writes = {grouped};
        s.label = "group by expert";
        plan_.steps.push_back(std::move(s));
        add_product(run_mul_mat_id, call, {node}, *w, quantized);
        plan_.steps.back().reads.push_back(grouped);
        return 1;
    }

    size_t rule_mul_mat_add(size_t i) {
        if (i + 1 >= live_.size()) return 0;
        tensor *product = live_[i], *sum = live_[i + 1];
        if (host::op_of(sum) != op::add || (sum->src[0] != product && sum->src[1] != product)) return 0;
        const tensor * term = sum->src[0] == product ? sum->src[1] : sum->src[0];
        const weights::weight * w = weight_of_product(product);
        auto same_shape = [&](const tensor * t) { return std::equal(std::begin(t->ne), std::end(t->ne), product->ne); };
        const bool is_bias = term->ne[0] == product->ne[0] && term->ne[1] * term->ne[2] * term->ne[3] == 1;
        if (w == nullptr || term == product || !can_run(sum) || !same_shape(sum) || (!is_bias && !same_shape(term)) ||
            (is_bias && w->described.ne[2] != 1) || term->type != host::type_f32 || use_count(graph_, product) != 1 ||
            (product->flags & host::flag_output) != 0 || product->view_src != nullptr) {
            return 0;
        }
        const bool reads_columns = format_of(w->packed_as).acts == activation::f32;
        if (!rows_apart(ops::rows_of(term), range_of(term), ops::rows_of(sum), range_of(sum)) ||
            (reads_columns && range_of(product->src[1]).meets(range_of(sum)))) {
            misses_++;
            return 0;
        }
        const uint8_t * quantized = nullptr;
        if (!quantized_columns(product, *w, quantized)) return 0;
        look_at(sum);
        plan_.mul_mats.push_back(ops::make_mul_mat_call(product, *w, quantized, sum));
        ops::add_to(*plan_.mul_mats.back(), product, term);
        add_product(run_mul_mat, plan_.mul_mats.back().get(), {product, sum}, *w, quantized);
        plan_.steps.back().reads.push_back(range_of(term));
        return 2;
    }

    void add_product(void (*run)(const void *, int, int), const void * call, std::vector<tensor *> nodes, const weights::weight & w,
                     const uint8_t * quantized) {
        const tensor * product = nodes.front();
        step s;
        s.run = run;
        s.arguments = call;
        s.num_tasks = one_task_a_thread;
        s.reads = {range_of(product->src[0]), quantized != nullptr ? range_at(quantized, quantized_bytes(product, w)) : range_of(product->src[1])};
        s.writes = {range_of(nodes.back())};
        s.fused_nodes = static_cast<int>(nodes.size()) - 1;
        s.label = std::string("matmul ") + format_of(w.packed_as).name + (nodes.size() > 1 ? " + add" : "");
        s.nodes = std::move(nodes);
        plan_.steps.push_back(std::move(s));
    }

    static byte_range range_at(const void * data, size_t bytes) {
        const auto begin = reinterpret_cast<uintptr_t>(data);
        return {begin, begin + bytes};
    }
    static size_t quantized_bytes(const tensor * product, const weights::weight & w) {
        const tensor * columns = product->src[1];
        const int64_t rows = columns->ne[1] * columns->ne[2] * columns->ne[3];
        return static_cast<size_t>(rows * ops::activation_row_size(format_of(w.packed_as).acts, columns->ne[0]));
    }

    // Activations that lie quantised in a slot: products of one input share them for as long as neither is written again.
    struct quantized_source {
        const uint8_t * data;
        const tensor * columns;
        activation acts;
        size_t next_step; // after the one that made it
    };

    // Sets `quantized` to the quantised columns of a product (null for f32), with a step that makes them where none has yet. False:
    // no memory.
    bool quantized_columns(const tensor * product, const weights::weight & w, const uint8_t *& quantized) {
        const tensor * columns = product->src[1];
        const activation acts = format_of(w.packed_as).acts;
        if (acts == activation::f32) return true;
        for (const quantized_source & q : quantized_) {
            if (q.acts == acts && holds_same(q, columns)) {
                quantized = q.data;
                return true;
            }
        }
        if (slots_.empty()) make_slots();
        uint8_t * slot = slots_[next_slot_++ % slots_.size()];
        if (slot == nullptr) return false;
        std::erase_if(quantized_, [&](const quantized_source & q) { return q.data == slot; });
        plan_.quantize_calls.push_back(std::make_unique<ops::quantize_call>(ops::make_quantize_call(columns, acts, slot)));
        const ops::quantize_call * call = plan_.quantize_calls.back().get();
        const byte_range written = range_at(slot, quantized_bytes(product, w));
        quantized = slot;
        const char * label = acts == activation::q8_32 ? "quantize q8_32" : "quantize q8_256";
        if (row_chain * chain = chain_that_ends_with(columns)) {
            chain->quantize = call;
            step & s = plan_.steps.back();
            s.writes.push_back(written);
            s.label += std::string(" + ") + label;
            quantized_.push_back({slot, columns, acts, plan_.steps.size()});
            return true;
        }
        step s;
        s.run = run_quantize;
        s.arguments = call;
        const int64_t rows = rows_per_task(columns->ne[0]);
        s.num_tasks = static_cast<int>((call->num_rows() + rows - 1) / rows);
        s.reads = {range_of(columns)};
        s.writes = {written};
        s.label = label;
        plan_.steps.push_back(std::move(s));
        quantized_.push_back({slot, columns, acts, plan_.steps.size()});
        return true;
    }

    // The last step, if it is a chain whose last call writes exactly these rows: its threads quantise what they
    // have just written.
    row_chain * chain_that_ends_with(const tensor * columns) {
        if (plan_.steps.empty() || plan_.steps.back().run != run_chain) return nullptr;
        row_chain & chain = *plan_.chains.back();
        const ops::row_call & last = chain.calls[chain.num_calls - 1];
        const bool same_rows = last.out == ops::rows_of(columns) && last.k == columns->ne[0] && last.ne1 == columns->ne[1] &&
                               last.ne2 == columns->ne[2] && last.ne3 == columns->ne[3];
        return same_rows && chain.quantize == nullptr ? &chain : nullptr;
    }

    bool holds_same(const quantized_source & q, const tensor * columns) const {
        const tensor * t = q.columns;
        if (t->data != columns->data || !std::equal(std::begin(t->ne), std::end(t->ne), columns->ne) ||
            !std::equal(std::begin(t->nb), std::end(t->nb), columns->nb)) {
            return false;
        }
        const byte_range range = range_of(columns);
        return std::none_of(plan_.steps.begin() + static_cast<ptrdiff_t>(q.next_step), plan_.steps.end(), [&](const step & s) {
            return std::any_of(s.writes.begin(), s.writes.end(), [&](const byte_range & written) { return written.meets(range); });
        });
    }

    // Three slots, each for the largest input of the graph: the two formats of one input, and the one before it.
    void make_slots() {
        size_t largest = 0;
        for (const tensor * node : live_) {
            const op which = host::op_of(node);
            const weights::weight * w = which == op::mul_mat || which == op::mul_mat_id ? packed_weight(node->src[0]) : nullptr;
            if (w != nullptr && node->src[1] != nullptr) largest = std::max(largest, quantized_bytes(node, *w));
        }
        for (int i = 0; i < 3; i++) {
            plan_.scratches.push_back(std::make_unique<scratch>(largest));
            slots_.push_back(plan_.scratches.back()->data());
        }
    }

    // --- attention ----------------------------------------------------------------------------------------------------------------------
    size_t run_attention_node(size_t i) {
        tensor * node = live_[i];
        return host::op_of(node) == op::flash_attn_ext && ops::can_run_attention(node) && add_attention({node}, node, 0) ? 1 : 0;
    }

    // The host rotates what it stores in quantised caches, so the output comes rotated, and is turned back by a product with the
    // Hadamard matrix.
    size_t rule_attention_hadamard(size_t i) {
        if (i + 1 >= live_.size()) return 0;
        tensor *node = live_[i], *turned = live_[i + 1];
        if (host::op_of(node) != op::flash_attn_ext || host::op_of(turned) != op::mul_mat || !ops::can_run_attention(node) || !can_run(turned)) return 0;
        const tensor * flat = ops::row_input(turned);
        const bool is_whole_output = flat != nullptr && flat->view_src == node && flat->data == node->data &&
                                     host::api().ggml_nbytes(flat) == host::api().ggml_nbytes(node);
        if (!is_whole_output || node->ne[0] % turned->ne[0] != 0 || use_count(graph_, node) != 1 || use_count(graph_, flat) != 1 ||
            (node->flags & host::flag_output) != 0 || node->view_src != nullptr) {
            return 0;
        }
        plan_.clones.push_back(std::make_unique<tensor>(*node));
        tensor * out = plan_.clones.back().get();
        out->data = turned->data;
        // Queries are read before the rows made from them are written, so both may have the same place; nothing else may.
        const byte_range written = range_of(turned);
        bool apart = !range_of(node->src[0]).meets(written) || ops::queries_lie_as_output(node, out);
        for (int s = 1; s < host::max_src; s++) apart = apart && (node->src[s] == nullptr || !range_of(node->src[s]).meets(written));
        if (!apart) {
            misses_++;
            return 0;
        }
        look_at(turned);
        return add_attention({node, turned}, out, turned->ne[0]) ? 2 : 0;
    }

    // The steps of one attention node, whose rows go to `out`, in groups of `rotate_out` turned back. False: no memory.
    bool add_attention(std::vector<tensor *> nodes, const tensor * out, int64_t rotate_out) {
        tensor * node = nodes.front();
        if (attention_memory_.max_threads == 0) make_attention_memory();
        if (attention_memory_.data == nullptr) return false;
        const ops::mask_map * map = mask_map_for(node);
        plan_.attentions.push_back(
            ops::make_attention_call(node, out, map, cells_of(node->src[1]), cells_of(node->src[2]), precision_, rotate_out, attention_memory_));
        const ops::attention_call * call = plan_.attentions.back().get();
        const byte_range work = range_at(attention_memory_.data, bytes_of(attention_memory_));
        step s;
        s.run = run_attention;
        s.arguments = call;
        s.num_tasks = one_task_a_thread;
        for (const tensor * source : node->src) {
            if (source != nullptr) s.reads.push_back(range_of(source));
        }
        s.reads.push_back(range_at(map->sight.get(), static_cast<size_t>(map->num_rows * map->num_blocks)));
        s.writes = {work};
        s.label = std::string("attention ") + cell_type_name(call->k_cells->type) + (call->int8 ? " int8" : "");
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
        last->writes.push_back(range_of(nodes.back()));
        last->fused_nodes = static_cast<int>(nodes.size()) - 1;
        if (rotate_out > 0) last->label += " + hadamard";
        last->nodes = std::move(nodes);
        plan_.steps.push_back(std::move(s));
        if (join.run != nullptr) plan_.steps.push_back(std::move(join));
        return true;
    }

    static size_t bytes_of(const ops::attention_memory & m) { return static_cast<size_t>(m.floats) * sizeof(float); }

    kv::kv_view cells_of(const tensor * t) const {
        const kv::cache_tensor * cache = cache_of(t);
        return cache != nullptr ? cache->view(*t) : kv::plain_view(*t);
    }

    // A host may use more threads than there are processors; those that find no memory leave the work to the others.
    void make_attention_memory() {
        attention_memory_.max_threads = 2 * os::usable_cpus() + 2;
        for (const tensor * node : live_) {
            if (!ops::can_run_attention(node)) continue;
            attention_memory_.floats = std::max(attention_memory_.floats, ops::attention_memory_floats(node, attention_memory_.max_threads));
        }
        plan_.scratches.push_back(std::make_unique<scratch>(bytes_of(attention_memory_)));
        attention_memory_.data = reinterpret_cast<float *>(plan_.scratches.back()->data());
        const std::string precision = text_of(option::attention);
        if (precision == "exact") precision_ = ops::attention_precision::exact;
        if (precision == "int8") precision_ = ops::attention_precision::int8;
    }

    const ops::mask_map * mask_map_for(const tensor * node) {
        for (const auto & map : plan_.mask_maps) {
            if (map->serves(node)) return map.get();
        }
        plan_.mask_maps.push_back(std::make_unique<ops::mask_map>(ops::make_mask_map(node)));
        const ops::mask_map * map = plan_.mask_maps.back().get();
        step s;
        s.run = run_mask_map;
        s.arguments = map;
        s.num_tasks = static_cast<int>((map->num_rows + rows_per_mask_task - 1) / rows_per_mask_task);
        if (map->mask != nullptr) s.reads = {range_of(map->mask)};
        s.writes = {range_at(map->sight.get(), static_cast<size_t>(map->num_rows * map->num_blocks))};
        s.label = "mask map";
        plan_.steps.push_back(std::move(s));
        return map;
    }

    size_t run_single(size_t i) {
        tensor * node = live_[i];
        if (!can_run(node)) return 0;
        const bool is_rope = host::op_of(node) == op::rope;
        append(ops::make_row_call(node, is_rope ? table_for(node) : nullptr), {node}, 0);
        return 1;
    }

    const ops::rope_table * table_for(const tensor * rope) {
        for (const auto & table : plan_.rope_tables) {
            if (table->serves(rope)) return table.get();
        }
        plan_.rope_tables.push_back(std::make_unique<ops::rope_table>(ops::make_rope_table(rope)));
        const ops::rope_table * table = plan_.rope_tables.back().get();
        step s;
        s.run = run_rope_table;
        s.arguments = table;
        s.num_tasks = static_cast<int>((table->num_tokens + tokens_per_rope_task - 1) / tokens_per_rope_task);
        s.reads = {range_of(table->positions)};
        if (table->freq_factors != nullptr) s.reads.push_back(range_of(table->freq_factors));
        s.writes = {table_range(*table)};
        s.label = "rope_table";
        plan_.steps.push_back(std::move(s));
        return table;
    }

    static byte_range table_range(const ops::rope_table & table) {
        const auto begin = reinterpret_cast<uintptr_t>(table.values.get());
        return {begin, begin + static_cast<size_t>(table.num_tokens * table.num_rotated) * sizeof(float)};
    }

    // --- row chains -------------------------------------------------------------------------------------------------------------------
    // Two operands of calls with equal row counts never meet across rows: they are the same rows, or do not meet at all.
    static bool rows_apart(const ops::row_operand & a, byte_range a_range, const ops::row_operand & b, byte_range b_range) {
        return !a_range.meets(b_range) || a == b;
    }

    // Whether a call may join the last chain, which it depends on row by row. `node` gives its operands as tensors.
    static bool joins(const step & last, const row_chain & chain, const ops::row_call & call, const tensor * node) {
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

    void append(const ops::row_call & call, std::vector<tensor *> nodes, int fused) {
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
            s.num_tasks = static_cast<int>((call.num_rows() + chain.rows_per_task - 1) / chain.rows_per_task);
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
    bool may_join(const ops::row_call & call, const tensor * node, const std::vector<tensor *> & nodes) const {
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

    // --- delegation -------------------------------------------------------------------------------------------------------------------
    size_t delegate(size_t i) {
        tensor * node = prepare(live_[i]);
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
        plan_.delegated_nodes++;
        return 1;
    }

    // Whether the host's repacked kernels are right for this node. They abort on activations in four dimensions or of another type, and
    // take four rows for one piece of memory, whatever lies between them.
    static bool repacked_kernel_takes(const tensor * node) {
        const op which = host::op_of(node);
        const tensor * columns = node->src[1];
        if ((which != op::mul_mat && which != op::mul_mat_id) || columns->type != host::type_f32 || columns->ne[3] != 1) return false;
        return which == op::mul_mat_id || columns->ne[1] < 4 || columns->nb[1] == static_cast<size_t>(columns->ne[0]) * sizeof(float);
    }

    // The node as the host shall see it: shadows in place of weights, caches as plain rows.
    tensor * prepare(tensor * node) {
        tensor * prepared = node;
        for (int s = 0; s < host::max_src; s++) {
            const tensor * source = node->src[s];
            memory * m = source != nullptr ? memory_of(source) : nullptr;
            if (m == nullptr) continue;
            if (kv::cache_tensor * cache = m->find_cache(reinterpret_cast<uintptr_t>(source->data))) {
                if (!cache->materialise()) fail(source, "no memory for its cache as plain rows");
            }
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
        if (kv::cache_tensor * cache = cache_of(node)) {
            if (!cache->materialise()) fail(node, "no memory for its cache as plain rows");
        }
        return prepared;
    }

    // `prepared`, made a copy of `node` unless it is one already.
    tensor * clone_of(const tensor * node, tensor *& prepared) {
        if (prepared == node) {
            plan_.clones.push_back(std::make_unique<tensor>(*node));
            prepared = plan_.clones.back().get();
        }
        return prepared;
    }

    void fail(const tensor * t, const char * why) {
        if (plan_.failure.empty()) plan_.failure = std::string(t->name) + ": " + why;
    }

    // --- barriers ---------------------------------------------------------------------------------------------------------------------
    // A kernel step needs no barrier before it if it meets nothing that was written, and writes nothing that was touched, since the
    // last barrier. The host puts its own around what it runs.
    void drop_barriers() {
        size_t since = 0; // first step after the last barrier
        for (size_t i = 0; i < plan_.steps.size(); i++) {
            step & s = plan_.steps[i];
            const bool beside_host = i == 0 || s.run == nullptr || plan_.steps[i - 1].run == nullptr;
            s.barrier = beside_host || needs_barrier(since, i);
            if (s.barrier) since = i;
        }
    }

    bool needs_barrier(size_t since, size_t i) const {
        const step & s = plan_.steps[i];
        for (size_t j = since; j < i; j++) {
            const step & before = plan_.steps[j];
            if (steps_meet(before, s)) return true;
        }
        return false;
    }

    const host::graph & graph_;
    plan plan_;
    std::vector<tensor *> live_;
    std::unordered_set<const tensor *> produced_;
    ops::attention_memory attention_memory_;
    ops::attention_precision precision_ = ops::attention_precision::automatic;
    std::vector<uint8_t *> slots_;
    size_t next_slot_ = 0;
    std::vector<quantized_source> quantized_;
    int misses_ = 0;
};

} // namespace

scratch::scratch(size_t bytes) : data_(static_cast<uint8_t *>(os::allocate(bytes))), bytes_(bytes) {}
scratch::~scratch() {
    if (data_ != nullptr) os::release(data_, bytes_);
}

plan make_plan(const host::graph & graph) { return planner(graph).make(); }

} // namespace alloy::graph
