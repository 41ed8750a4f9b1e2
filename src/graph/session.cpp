#include "graph/session.h"

#include "base/check.h"
#include "base/counters.h"
#include "base/log.h"
#include "base/options.h"
#include "base/os.h"
#include "base/thread_pool.h"
#include "host/ops.h"
#include "host/symbols.h"

#include <cstdio>
#include <cstring>

namespace alloy::graph {
namespace {

// llama.cpp keeps two results (with and without outputs) of the target and of each draft model alive at a time.
constexpr size_t max_plans = 4;

bool index_in_range(const index_check & check) {
    const host::tensor * t = check.indices;
    for (int64_t i3 = 0; i3 < t->ne[3]; i3++)
        for (int64_t i2 = 0; i2 < t->ne[2]; i2++)
            for (int64_t i1 = 0; i1 < t->ne[1]; i1++)
                for (int64_t i0 = 0; i0 < t->ne[0]; i0++) {
                    const char * at = static_cast<const char *>(t->data) + i0 * static_cast<int64_t>(t->nb[0]) +
                                      i1 * static_cast<int64_t>(t->nb[1]) + i2 * static_cast<int64_t>(t->nb[2]) +
                                      i3 * static_cast<int64_t>(t->nb[3]);
                    const int64_t index = t->type == host::type_i64 ? *reinterpret_cast<const int64_t *>(at)
                                                                    : *reinterpret_cast<const int32_t *>(at);
                    if (index < 0 || index >= check.limit) {
                        ALLOY_ERROR("%s of %.64s: got row %lld, expected [0, %lld); graph refused",
                                    host::api().ggml_op_name(check.node->op), check.node->name, static_cast<long long>(index),
                                    static_cast<long long>(check.limit));
                        return false;
                    }
                }
    return true;
}

// Steps that want memory of their own may find none. The graph fails then, not the process: threads and the host know no exceptions.
void do_tasks(const step & s, int thread, int num_threads, std::atomic<bool> & failed) {
    if (failed.load()) return; // what this step reads may never have been written
    try {
        if (s.num_tasks == one_task_a_thread) return s.run(s.arguments, thread, num_threads);
        for (int task = thread; task < s.num_tasks; task += num_threads) s.run(s.arguments, task, s.num_tasks);
    } catch (const std::exception & e) {
        if (!failed.exchange(true)) ALLOY_ERROR("graph failed in step \"%s\": %s", s.label.c_str(), e.what());
    }
}

void run_custom_node(host::tensor *, int thread, int num_threads, void * user) {
    const auto & range = *static_cast<const step_range *>(user);
    for (const step * s = range.begin; s != range.end; s++) do_tasks(*s, thread, num_threads, *range.failed);
}

host::tensor custom_node(step_range * range) {
    host::tensor t{};
    for (int i = 0; i < host::max_dims; i++) {
        t.ne[i] = 1;
        t.nb[i] = sizeof(float);
    }
    t.op = host::op_number(host::op::custom);
    t.flags = host::flag_compute;
    const host::custom_params params{run_custom_node, -1, range};
    std::memcpy(t.op_params, &params, sizeof(params));
    return t;
}

struct pool_run {
    const plan * p;
    host::abort_callback stop;
    void * session;
    std::atomic<bool> & failed;
    std::atomic<bool> aborted{false};
};

void run_steps(void * user, int thread, int num_threads) {
    auto & run = *static_cast<pool_run *>(user);
    for (const step & s : run.p->steps) {
        if (s.barrier) {
            if (thread == 0 && run.stop(run.session)) run.aborted.store(true);
            pool_barrier(num_threads);
            if (run.aborted.load()) return;
        }
        do_tasks(s, thread, num_threads, run.failed);
    }
}

void count_run(const plan & p, int status) {
    count(counter::graphs);
    if (status == host::status_aborted) count(counter::aborted_graphs);
    else if (status != host::status_success) count(counter::failed_graphs);
    if (status != host::status_success) return;
    count(counter::tokens, static_cast<uint64_t>(p.tokens));
    for (const step & s : p.steps) {
        if (s.run != nullptr) {
            count(counter::kernel_steps);
            count(counter::fused_nodes, static_cast<uint64_t>(s.fused_nodes));
            if (!s.barrier) count(counter::barriers_dropped);
            continue;
        }
        count(counter::delegated_nodes, s.nodes.size());
        for (const host::tensor * node : s.nodes) count_delegated(node->op);
    }
}

} // namespace

std::unique_ptr<session> session::make() {
    std::unique_ptr<session> s(new session);
    s->cpu_ = host::cpu_backend::make();
    s->num_threads_ = os::usable_cpus();
    if (s->cpu_) s->cpu_->set_abort_callback(stop, s.get());
    return s->cpu_ ? std::move(s) : nullptr;
}

// Between steps, and between nodes of the host: a step has failed, or the user wants to stop.
bool session::stop(void * user) {
    const auto & s = *static_cast<const session *>(user);
    return s.failed_.load() || (s.abort_ != nullptr && s.abort_(s.abort_user_));
}

void session::set_abort_callback(host::abort_callback callback, void * user) {
    abort_ = callback;
    abort_user_ = user;
}

plan & session::plan_for(const host::graph & graph) {
    for (auto p = plans_.begin(); graph.uid != 0 && p != plans_.end(); p++) {
        if (p->uid != graph.uid || p->nodes != graph.nodes || p->n_nodes != graph.n_nodes) continue;
        plans_.splice(plans_.begin(), plans_, p);
        count(counter::plans_reused);
        return plans_.front();
    }
    plan made = make_plan(graph);
    count(counter::plans_built);
    count(counter::rule_misses, static_cast<uint64_t>(made.rule_misses));
#ifdef ALLOY_CHECKED
    const std::string broken = verify_plan(made, graph);
    if (!broken.empty()) std::fprintf(stderr, "%s%s\n", print_plan(made).c_str(), broken.c_str());
    ALLOY_EXPECT(broken.empty());
#endif
    if (is_on(option::plan)) std::fputs(print_plan(made).c_str(), stderr);
    if (graph.uid == 0) {
        once_ = std::move(made);
        return once_;
    }
    if (plans_.size() == max_plans) plans_.pop_back();
    plans_.push_front(std::move(made));
    return plans_.front();
}

void session::forget(const plan & p) {
    plans_.remove_if([&](const plan & each) { return &each == &p; });
    if (&once_ == &p) once_ = {};
}

int session::compute(const host::graph & graph) {
    plan & p = plan_for(graph);
    const int status = prologue(p) ? run(p, graph) : static_cast<int>(host::status_failed);
    count_run(p, status);
    if (failed_.exchange(false)) forget(p); // its steps count on having run to their ends
    return status;
}

// The only part of a run that may fail, before anything is written.
bool session::prologue(const plan & p) const {
    bool good = true;
    for (memory * m : p.memories) good = !m->take_refusal() && good;
    if (!p.failure.empty()) {
        ALLOY_ERROR("graph refused: %s", p.failure.c_str());
        good = false;
    }
    for (const index_check & check : p.checks) good = good && index_in_range(check);
    if (good) p.caches->prepare();
    return good;
}

int session::run(plan & p, const host::graph & graph) {
    const int status = p.delegated_nodes > 0 ? run_in_host_threads(p, graph) : run_on_own_threads(p);
    return failed_.load() ? static_cast<int>(host::status_alloc_failed) : status;
}

// A graph with delegated nodes is carried by the host's threads from end to end, our steps as CUSTOM nodes between its own: two
// thread pools on the same cores, one spinning while the other works, cost more than the kernels gain (docs/performance.md).
int session::run_in_host_threads(plan & p, const host::graph & graph) {
    if (p.carried.empty()) {
        for (size_t i = 0; i < p.steps.size();) {
            const step & s = p.steps[i];
            if (s.run == nullptr) {
                p.carried.insert(p.carried.end(), s.nodes.begin(), s.nodes.end());
                i++;
                continue;
            }
            size_t end = i + 1;
            while (end < p.steps.size() && p.steps[end].run != nullptr && !p.steps[end].barrier) end++;
            p.ranges.push_back(std::make_unique<step_range>(step_range{&p.steps[i], p.steps.data() + end, &failed_}));
            p.clones.push_back(std::make_unique<host::tensor>(custom_node(p.ranges.back().get())));
            p.carried.push_back(p.clones.back().get());
            i = end;
        }
    }
    cpu_->set_num_threads(num_threads_);
    count(counter::host_calls);
    return cpu_->compute(p.carried.data(), static_cast<int>(p.carried.size()), graph);
}

int session::run_on_own_threads(const plan & p) {
    if (p.steps.empty()) return host::status_success;
    pool_run run{&p, stop, this, failed_};
    count(counter::pool_runs);
    run_on_pool(num_threads_, run_steps, &run);
    return run.aborted.load() ? host::status_aborted : host::status_success;
}

} // namespace alloy::graph
