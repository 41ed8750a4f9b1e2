// Part of the planner: products on packed weights, and the quantised activations that they share.
#include "graph/planner.h"

#include "host/ops.h"
#include "host/symbols.h"

namespace alloy::graph {

using host::op;

namespace {

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

} // namespace

weights::weight * planner::packed_weight(const tensor * t) {
    memory * m = t != nullptr ? memory_of(t) : nullptr;
    weights::weight * w = m != nullptr ? m->find_weight(t) : nullptr;
    return w != nullptr && w->where == weights::layout::packed ? w : nullptr;
}

bool planner::touches_packed(const tensor * node) {
    if (packed_weight(node) != nullptr) return true;
    return std::any_of(std::begin(node->src), std::end(node->src), [](const tensor * s) { return packed_weight(s) != nullptr; });
}

// The weight of a MUL_MAT that a kernel of ours runs, or null.
const weights::weight * planner::weight_of_product(const tensor * node) const {
    if (host::op_of(node) != op::mul_mat || touches_cache(node)) return nullptr;
    const weights::weight * w = packed_weight(node->src[0]);
    return w != nullptr && ops::can_run_mul_mat(node, *w) ? w : nullptr;
}

size_t planner::run_matrix(size_t i) {
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
    const byte_range grouped = range_at(call, sizeof(*call)); // stands for what group() writes
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

size_t planner::rule_mul_mat_add(size_t i) {
    if (i + 1 >= live_.size()) return 0;
    tensor *product = live_[i], *sum = live_[i + 1];
    if (host::op_of(sum) != op::add || (sum->src[0] != product && sum->src[1] != product)) return 0;
    const tensor * term = sum->src[0] == product ? sum->src[1] : sum->src[0];
    const weights::weight * w = weight_of_product(product);
    auto same_shape = [&](const tensor * t) { return std::equal(std::begin(t->ne), std::end(t->ne), product->ne); };
    const bool is_bias = term->ne[0] == product->ne[0] && term->ne[1] * term->ne[2] * term->ne[3] == 1;
    if (w == nullptr || term == product || !can_run(sum) || !same_shape(sum) || (!is_bias && !same_shape(term)) ||
        (is_bias && w->described.ne[2] != 1) || term->type != host::type_f32 || !may_vanish(product)) {
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

void planner::add_product(void (*run)(const void *, int, int), const void * call, std::vector<tensor *> nodes, const weights::weight & w,
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

size_t planner::quantized_bytes(const tensor * product, const weights::weight & w) {
    const tensor * columns = product->src[1];
    const int64_t rows = columns->ne[1] * columns->ne[2] * columns->ne[3];
    return static_cast<size_t>(rows * ops::activation_row_size(format_of(w.packed_as).acts, columns->ne[0]));
}

// Sets `quantized` to the quantised columns of a product (null for f32), with a step that makes them where none has yet. False:
// no memory.
bool planner::quantized_columns(const tensor * product, const weights::weight & w, const uint8_t *& quantized) {
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
    s.num_tasks = tasks_of(call->num_rows(), rows);
    s.reads = {range_of(columns)};
    s.writes = {written};
    s.label = label;
    plan_.steps.push_back(std::move(s));
    quantized_.push_back({slot, columns, acts, plan_.steps.size()});
    return true;
}

// The last step, if it is a chain whose last call writes exactly these rows: its threads quantise what they
// have just written.
row_chain * planner::chain_that_ends_with(const tensor * columns) {
    if (plan_.steps.empty() || plan_.steps.back().run != run_chain) return nullptr;
    row_chain & chain = *plan_.chains.back();
    const ops::row_call & last = chain.calls[chain.num_calls - 1];
    const bool same_rows = last.out == ops::rows_of(columns) && last.k == columns->ne[0] && last.ne1 == columns->ne[1] &&
                           last.ne2 == columns->ne[2] && last.ne3 == columns->ne[3];
    return same_rows && chain.quantize == nullptr ? &chain : nullptr;
}

bool planner::holds_same(const quantized_source & q, const tensor * columns) const {
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
void planner::make_slots() {
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

} // namespace alloy::graph
