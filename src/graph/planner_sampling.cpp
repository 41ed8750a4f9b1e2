// Sampling: selection from long rows, and the chains of samplers that the host adds behind the logits (-bs).
#include "graph/planner.h"

#include "host/ops.h"
#include "host/symbols.h"

#include <unordered_map>

namespace alloy::graph {

using host::op;

namespace {

void run_node(const void * arguments, int task, int num_tasks) {
    const auto & s = *static_cast<const node_step *>(arguments);
    s.run(s.node, task, num_tasks);
}

void run_sampling_chains(const void * arguments, int task, int) { static_cast<const chain_step *>(arguments)->chains[static_cast<size_t>(task)]->run(); }

} // namespace

// Selection from long rows, and what a sampling graph has around it.
size_t planner::run_sampling(size_t i) {
    tensor * node = live_[i];
    const ops::node_call call = ops::sampling_call_for(node);
    if (call.run == nullptr || touches_cache(node) || touches_packed(node)) return 0;
    add_node_step(call, {node});
    return 1;
}

// The last of the nodes is written; those before it are read by one another only.
void planner::add_node_step(const ops::node_call & call, std::vector<tensor *> nodes) {
    tensor * node = nodes.back();
    plan_.node_steps.push_back(std::make_unique<node_step>(node_step{node, call.run}));
    step s;
    s.run = run_node;
    s.arguments = plan_.node_steps.back().get();
    s.num_tasks = call.num_tasks;
    for (const tensor * each : nodes) {
        for (const tensor * source : each->src) {
            if (source != nullptr && std::find(nodes.begin(), nodes.end(), source) == nodes.end()) s.reads.push_back(range_of(source));
        }
        s.label += (s.label.empty() ? "" : " + ") + std::string(host::api().ggml_op_name(each->op));
    }
    s.writes = {range_of(node)};
    s.fused_nodes = static_cast<int>(nodes.size()) - 1;
    s.nodes = std::move(nodes);
    plan_.steps.push_back(std::move(s));
}

size_t planner::rule_drawn_place(size_t i) {
    if (host::op_of(live_[i]) != op::cumsum || i + 3 >= live_.size()) return 0;
    tensor *cumsum = live_[i], *sub = live_[i + 1], *step = live_[i + 2], *sum = live_[i + 3];
    const ops::node_call call = ops::drawn_place_call_for(cumsum, sub, step, sum);
    if (call.run == nullptr) return 0;
    for (tensor * t : {cumsum, sub, step}) {
        if (!may_vanish(t) || touches_cache(t) || touches_packed(t)) return 0;
    }
    for (tensor * t : {sub, step, sum}) look_at(t);
    add_node_step(call, {cumsum, sub, step, sum}); // one task that reads all before it writes: nothing to ask about overlaps
    return 4;
}

// --- chains

// Drops the results that nobody reads. False: something else than a result is read outside of the chain, so its nodes must run.
bool planner::keep_what_is_read(ops::sampling_chain & chain) const {
    std::unordered_map<const tensor *, int> uses; // of the chain's nodes and their reshapes, by the chain itself
    for (const tensor * node : chain.nodes) uses[node] = 0;
    std::unordered_map<const tensor *, const tensor *> owner; // node of the chain that a tensor holds the data of
    for (const tensor * node : chain.nodes) owner[node] = node;
    std::vector<const tensor *> members(chain.nodes.begin(), chain.nodes.end());
    for (int i = 0; i < graph_.n_nodes; i++) {
        const tensor * node = graph_.nodes[i];
        if (!host::is_view_op(host::op_of(node)) || node->src[0] == nullptr) continue;
        const auto of = owner.find(node->src[0]);
        if (of == owner.end()) continue;
        owner[node] = of->second;
        members.push_back(node);
    }
    for (const tensor * member : members) {
        for (const tensor * source : member->src) {
            if (source != nullptr && owner.count(source) != 0) uses[source]++;
        }
    }
    std::unordered_set<const tensor *> read;
    for (const tensor * member : members) {
        if ((member->flags & host::flag_output) != 0 || use_count(graph_, member) != uses[member]) read.insert(owner[member]);
    }
    for (tensor ** result : {&chain.results.sampled, &chain.results.probabilities, &chain.results.logits, &chain.results.candidates}) {
        if (*result != nullptr && read.erase(*result) == 0) *result = nullptr;
    }
    return read.empty();
}

// Null: no chain begins here, or not one that can run in one step.
std::unique_ptr<ops::sampling_chain> planner::sampling_chain_at(size_t i) {
    ops::sampling_chain found;
    if (!ops::find_sampling_chain(live_, i, found) || !ops::can_run_chains()) return nullptr;
    auto chain = std::make_unique<ops::sampling_chain>(std::move(found));
    const byte_range row = range_at(chain->logits(), static_cast<size_t>(chain->row->ne[0]) * sizeof(float));
    const bool foreign = std::any_of(chain->nodes.begin(), chain->nodes.end(), [&](const tensor * node) { return touches_cache(node) || touches_packed(node); });
    bool apart = keep_what_is_read(*chain) && !foreign;
    const ops::chain_results & r = chain->results;
    const tensor * results[] = {r.sampled, r.probabilities, r.logits, r.candidates};
    // Results are written while the row is still read. Other inputs are not: what they hold is used, or the uniform copied, before.
    for (const tensor *& a : results) {
        if (a == nullptr) continue;
        apart = apart && !range_of(a).meets(row);
        for (const tensor ** b = results; b < &a; b++) apart = apart && (*b == nullptr || *b == a || !range_of(*b).meets(range_of(a)));
    }
    if (!apart) misses_++;
    return apart ? std::move(chain) : nullptr;
}

// Whether anything but the nodes of `members` reads rows of `pad`.
bool planner::is_read_beside(const tensor * pad, const std::unordered_set<const tensor *> & members) const {
    std::unordered_map<const tensor *, int> uses = {{pad, 0}}; // of it and its views, within this graph
    for (int i = 0; i < graph_.n_nodes; i++) {
        const tensor * node = graph_.nodes[i];
        if (host::is_view_op(host::op_of(node)) && host::computed(node) == pad) uses[node] = 0;
    }
    for (int i = 0; i < graph_.n_nodes; i++) {
        const tensor * node = graph_.nodes[i];
        for (const tensor * source : node->src) {
            const auto use = uses.find(source);
            if (use == uses.end()) continue;
            use->second++;
            if (is_live(node) && members.count(node) == 0) return true;
        }
    }
    return std::any_of(uses.begin(), uses.end(), [&](const auto & use) { return (use.first->flags & host::flag_output) != 0 || use_count(graph_, use.first) != use.second; });
}

// Chains of rows share a step, a task each, if none writes what another reads.
void planner::add_chain(std::unique_ptr<ops::sampling_chain> chain) {
    step s;
    s.reads.push_back(range_at(chain->logits(), static_cast<size_t>(chain->row->ne[0]) * sizeof(float)));
    if (chain->uniform != nullptr) s.reads.push_back(range_of(chain->uniform));
    for (const auto & in : chain->inputs) {
        for (const tensor * t : {in.values, in.tokens, in.counts}) {
            if (t != nullptr) s.reads.push_back(range_of(t));
        }
    }
    const ops::chain_results & r = chain->results;
    for (const tensor * t : {r.sampled, r.probabilities, r.logits, r.candidates}) {
        if (t != nullptr) s.writes.push_back(range_of(t));
    }
    const bool joins_last = !plan_.steps.empty() && plan_.steps.back().run == run_sampling_chains && !steps_meet(plan_.steps.back(), s);
    if (!joins_last) {
        plan_.chain_steps.push_back(std::make_unique<chain_step>());
        s.run = run_sampling_chains;
        s.arguments = plan_.chain_steps.back().get();
        plan_.steps.push_back(std::move(s));
        s = {};
    }
    step & at = plan_.steps.back();
    at.reads.insert(at.reads.end(), s.reads.begin(), s.reads.end());
    at.writes.insert(at.writes.end(), s.writes.begin(), s.writes.end());
    at.label += (at.label.empty() ? "" : " + ") + chain->name();
    at.nodes.insert(at.nodes.end(), chain->nodes.begin(), chain->nodes.end());
    at.num_tasks++;
    at.fused_nodes = static_cast<int>(at.nodes.size() - at.writes.size());
    plan_.chain_steps.back()->chains.push_back(std::move(chain));
}

// At the padded logits: all chains behind, without the copy if only they read it. At the first node of a chain: this one.
size_t planner::rule_sampling_chain(size_t i) {
    tensor * pad = ops::is_padded_rows(live_[i]) ? live_[i] : nullptr;
    std::vector<std::unique_ptr<ops::sampling_chain>> chains;
    std::unordered_set<const tensor *> members;
    size_t next = i + (pad != nullptr ? 1 : 0);
    while (next < live_.size()) {
        auto chain = sampling_chain_at(next);
        if (chain == nullptr || (pad != nullptr && (chain->pad != pad || chain->reads_padded()))) break;
        next += chain->nodes.size();
        members.insert(chain->nodes.begin(), chain->nodes.end());
        chains.push_back(std::move(chain));
        if (pad == nullptr) break;
    }
    if (chains.empty() || (pad != nullptr && is_read_beside(pad, members))) return 0;
    for (size_t n = i + 1; n < next; n++) look_at(live_[n]);
    for (auto & chain : chains) add_chain(std::move(chain));
    if (pad != nullptr) {
        plan_.steps.back().nodes.push_back(pad);
        plan_.steps.back().fused_nodes++;
    }
    return next - i;
}

} // namespace alloy::graph
