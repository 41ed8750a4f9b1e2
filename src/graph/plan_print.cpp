// A plan as text, and the checks that every plan must pass.
#include "graph/plan.h"

#include "host/ops.h"
#include "host/symbols.h"

#include <algorithm>
#include <cstdio>
#include <map>

namespace alloy::graph {
namespace {

std::string host_nodes(const step & s) {
    std::map<std::string, int> by_op;
    for (const host::tensor * node : s.nodes) by_op[host::api().ggml_op_name(node->op)]++;
    std::string text;
    for (const auto & [name, n] : by_op) text += " " + name + (n > 1 ? "x" + std::to_string(n) : "");
    return text;
}

// Nodes of a kernel step whose result is nowhere among what the step writes.
std::vector<const host::tensor *> unwritten_nodes(const step & s) {
    std::vector<const host::tensor *> nodes;
    for (const host::tensor * node : s.nodes) {
        const byte_range r = range_of(node);
        const bool written = std::any_of(s.writes.begin(), s.writes.end(), [&](const byte_range & w) { return w.begin == r.begin && w.end == r.end; });
        if (s.run != nullptr && !written) nodes.push_back(node);
    }
    return nodes;
}

// A node of the step that has `node` as a source, if the step reads its memory. (Chains read the logits instead of their padded copy.)
const host::tensor * reader_of(const host::tensor * node, const step & s) {
    const byte_range memory = range_of(node);
    if (std::none_of(s.reads.begin(), s.reads.end(), [&](const byte_range & r) { return r.meets(memory); })) return nullptr;
    for (const host::tensor * reader : s.nodes) {
        for (const host::tensor * source : reader->src) {
            if (host::computed(source) == node) return reader;
        }
    }
    return nullptr;
}

} // namespace

std::string print_plan(const plan & p) {
    char line[256];
    std::snprintf(line, sizeof(line), "plan uid %llu: %d nodes, %zu steps, %d delegated, %d rule misses\n",
                  static_cast<unsigned long long>(p.uid), p.n_nodes, p.steps.size(), p.delegated_nodes, p.rule_misses);
    std::string text = line;
    for (size_t i = 0; i < p.steps.size(); i++) {
        const step & s = p.steps[i];
        const std::string tasks = s.num_tasks == one_task_a_thread ? " all threads" : std::to_string(s.num_tasks) + (s.num_tasks == 1 ? " task " : " tasks");
        std::snprintf(line, sizeof(line), "%4zu %c %-36s %11s", i, s.barrier ? '|' : ' ', s.label.c_str(), tasks.c_str());
        text += line;
        if (s.run == nullptr) text += host_nodes(s);
        else if (!s.nodes.empty()) text += std::string("  ") + s.nodes.back()->name;
        text += "\n";
    }
    return text;
}

std::string verify_plan(const plan & p, const host::graph & graph) {
    size_t since = 0;
    for (size_t i = 0; i < p.steps.size(); i++) {
        const step & s = p.steps[i];
        if (s.barrier || s.run == nullptr) {
            since = i;
            continue;
        }
        for (size_t j = since; j < i; j++) {
            const step & before = p.steps[j];
            if (steps_meet(before, s)) {
                return "steps " + std::to_string(j) + " and " + std::to_string(i) + " meet without a barrier";
            }
        }
    }
    // Every live node is computed once, and a result that is never written is read only in the step that it was fused into.
    size_t computed = 0, live = 0;
    for (int i = 0; i < graph.n_nodes; i++) live += is_live(graph.nodes[i]) ? 1 : 0;
    for (const step & s : p.steps) {
        computed += s.nodes.size();
        for (const host::tensor * fused : unwritten_nodes(s)) {
            for (const step & other : p.steps) {
                const host::tensor * reader = &other != &s ? reader_of(fused, other) : nullptr;
                if (reader != nullptr) return std::string(fused->name) + " is fused away but " + reader->name + " reads it";
            }
        }
    }
    if (p.failure.empty() && computed != live) {
        return std::to_string(computed) + " nodes in steps, expected " + std::to_string(live);
    }
    return {};
}

} // namespace alloy::graph
