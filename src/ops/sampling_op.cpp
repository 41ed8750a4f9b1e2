#include "ops/sampling_op.h"

#include "host/ops.h"
#include "kernels/select/rank.h"
#include "ops/operands.h"
#include "ops/sampling_chain.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace alloy::ops {
namespace {

using host::op;
using host::tensor;

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr int64_t elements_a_task = 32768;
constexpr int64_t long_row = 1024; // SOFT_MAX of shorter rows (routing) is the host's

int64_t num_rows(const tensor * t) { return t->ne[1] * t->ne[2] * t->ne[3]; }

bool is_floats(const tensor * t) { return t != nullptr && t->type == host::type_f32 && is_dense(t) && num_elements(t) > 0 && num_elements(t) < (int64_t{1} << 31); }
bool is_indices(const tensor * t) { return t != nullptr && t->type == host::type_i32 && is_dense(t) && num_elements(t) > 0; }

const float * in(const tensor * node, int s) { return static_cast<const float *>(node->src[s]->data); }
float * out(const tensor * node) { return static_cast<float *>(node->data); }
int32_t * ids_out(const tensor * node) { return static_cast<int32_t *>(node->data); }

// One per thread for the life of the process: the longest row takes 24 bytes an element.
select_memory & memory() {
    thread_local select_memory m;
    return m;
}

template <class Body> void for_rows(const tensor * node, int task, int num_tasks, Body body) {
    const int64_t n = node->src[0]->ne[0], rows = num_rows(node->src[0]);
    for (int64_t r = task; r < rows; r += num_tasks) body(in(node, 0) + r * n, n, r);
}
template <class Body> void for_elements(const tensor * node, int task, int num_tasks, Body body) {
    const int64_t n = num_elements(node), begin = n * task / num_tasks, end = n * (task + 1) / num_tasks;
    for (int64_t i = begin; i < end; i++) body(i);
}

// --- selection

void top_k(const tensor * node, int task, int num_tasks) {
    for_rows(node, task, num_tasks, [&](const float * x, int64_t n, int64_t r) {
        const int64_t k = top_ranks(x, n, node->ne[0], memory());
        for (int64_t i = 0; i < k; i++) ids_out(node)[r * node->ne[0] + i] = id_of(memory().ranks[static_cast<size_t>(i)]);
    });
}

void argsort_rows(const tensor * node, int task, int num_tasks) {
    const bool descending = node->op_params[0] == host::sort_descending;
    for_rows(node, task, num_tasks, [&](const float * x, int64_t n, int64_t r) { argsort(x, n, descending, ids_out(node) + r * n, memory()); });
}

void argmax_rows(const tensor * node, int task, int num_tasks) {
    for_rows(node, task, num_tasks, [&](const float * x, int64_t n, int64_t r) { ids_out(node)[r] = argmax(x, n, memory()); });
}

// --- sums

void soft_max_rows(const tensor * node, int task, int num_tasks) {
    static const select_kernel exp_sums = find_select(select_op::exp_sums);
    for_rows(node, task, num_tasks, [&](const float * x, int64_t n, int64_t r) {
        thread_local std::vector<double> sums;
        float * y = out(node) + r * n;
        block_maxima(x, n, memory());
        const float highest = highest_of(memory(), n);
        if (std::isinf(highest)) { // nothing to share out, or infinite shares: what the formula gives
            for (int64_t i = 0; i < n; i++) y[i] = x[i] - highest == 0 || std::isnan(x[i] - highest) ? std::numeric_limits<float>::quiet_NaN() : 0;
            return;
        }
        sums.resize(static_cast<size_t>(select_blocks(n)));
        select_args args{};
        args.x = x;
        args.n = n;
        args.shift = highest;
        args.scale = float_param(node, 0);
        args.sums = sums.data();
        args.exps = y;
        exp_sums(args);
        const auto share = static_cast<float>(1 / std::accumulate(sums.begin(), sums.end(), 0.0));
        for (int64_t i = 0; i < n; i++) y[i] *= share;
    });
}

// Running sums of eight hang on one addition to the sum before them, not on eight.
void cumsum_rows(const tensor * node, int task, int num_tasks) {
    for_rows(node, task, num_tasks, [&](const float * x, int64_t n, int64_t r) {
        float * y = out(node) + r * n;
        double before = 0;
        int64_t i = 0;
        for (; i + 8 <= n; i += 8) {
            double run[8];
            double sum = 0;
            for (int j = 0; j < 8; j++) run[j] = sum += static_cast<double>(x[i + j]);
            for (int j = 0; j < 8; j++) y[i + j] = static_cast<float>(before + run[j]);
            before += sum;
        }
        for (; i < n; i++) y[i] = static_cast<float>(before += static_cast<double>(x[i]));
    });
}

void sum_all(const tensor * node, int, int) {
    const int64_t n = num_elements(node->src[0]);
    const float * x = in(node, 0);
    double sums[8] = {};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        for (int j = 0; j < 8; j++) sums[j] += static_cast<double>(x[i + j]);
    }
    for (; i < n; i++) sums[0] += static_cast<double>(x[i]);
    *out(node) = static_cast<float>(std::accumulate(sums, sums + 8, 0.0));
}

// --- element by element

void step_up(const tensor * node, int task, int num_tasks) {
    for_elements(node, task, num_tasks, [x = in(node, 0), y = out(node)](int64_t i) { y[i] = x[i] > 0 ? 1.0f : 0.0f; });
}

// The host's graph for min-p keeps what is above the threshold, its CPU sampler what reaches it; with p = 1 the graph keeps nothing and
// everything becomes NaN. Here both keep what reaches it.
void step_reached(const tensor * node, int task, int num_tasks) {
    for_elements(node, task, num_tasks, [x = in(node, 0), y = out(node)](int64_t i) { y[i] = x[i] >= 0 ? 1.0f : 0.0f; });
}

// Of masks, most of the time.
void log_of(const tensor * node, int task, int num_tasks) {
    for_elements(node, task, num_tasks, [x = in(node, 0), y = out(node)](int64_t i) { y[i] = x[i] == 1 ? 0 : x[i] == 0 ? -inf : std::log(x[i]); });
}

void sub_scalar(const tensor * node, int task, int num_tasks) {
    for_elements(node, task, num_tasks, [x = in(node, 0), y = out(node), b = *in(node, 1)](int64_t i) { y[i] = x[i] - b; });
}

void clamp(const tensor * node, int task, int num_tasks) {
    const float low = float_param(node, 0), high = float_param(node, 1);
    for_elements(node, task, num_tasks, [=, x = in(node, 0), y = out(node)](int64_t i) { y[i] = x[i] < low ? low : x[i] > high ? high : x[i]; });
}

// Places that come from clamped sums. NaN is place 0, never an undefined number.
void cast_to_int(const tensor * node, int task, int num_tasks) {
    for_elements(node, task, num_tasks, [x = in(node, 0), y = ids_out(node)](int64_t i) {
        y[i] = x[i] > -0x1p31f && x[i] < 0x1p31f ? static_cast<int32_t>(x[i]) : 0;
    });
}

// Rows of one element, F32 or I32. An index that no element has gives 0.
void gather(const tensor * node, int task, int num_tasks) {
    const auto * x = static_cast<const int32_t *>(node->src[0]->data);
    const auto * at = static_cast<const int32_t *>(node->src[1]->data);
    const auto limit = static_cast<uint32_t>(node->src[0]->ne[1]);
    for_elements(node, task, num_tasks, [=, y = ids_out(node)](int64_t i) { y[i] = static_cast<uint32_t>(at[i]) < limit ? x[at[i]] : 0; });
}

void scatter(const tensor * node, int, int) {
    const auto * at = static_cast<const int32_t *>(node->src[1]->data);
    const auto limit = static_cast<uint32_t>(node->ne[1]);
    for (int64_t i = 0; i < node->src[0]->ne[1]; i++) {
        if (static_cast<uint32_t>(at[i]) < limit) out(node)[at[i]] = in(node, 0)[i];
    }
}

// Rows of zeros behind rows.
void pad_rows(const tensor * node, int task, int num_tasks) {
    const int64_t n = num_elements(node), rows = num_elements(node->src[0]), begin = n * task / num_tasks, end = n * (task + 1) / num_tasks;
    const int64_t filled = std::clamp(rows, begin, end);
    std::copy(in(node, 0) + begin, in(node, 0) + filled, out(node) + begin);
    std::fill(out(node) + filled, out(node) + end, 0.0f);
}

// --- the draw

// Shares are not below 0, so all running sums behind the first that exceeds the uniform do too. Block by block, then within the block.
void drawn_place(const tensor * sum, int, int) {
    const tensor * sub = sum->src[0]->src[0];
    const tensor * cumsum = sub->src[0];
    const float * x = in(cumsum, 0);
    const float uniform = *in(sub, 1);
    const int64_t n = num_elements(cumsum);
    const auto exceeds = [&](double run) { return static_cast<float>(run) - uniform > 0; };
    double before = 0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        double sums[4] = {};
        for (int64_t j = 0; j < 16; j++) sums[j % 4] += static_cast<double>(x[i + j]);
        const double run = before + ((sums[0] + sums[1]) + (sums[2] + sums[3]));
        if (exceeds(run)) break;
        before = run;
    }
    while (i < n && !exceeds(before += static_cast<double>(x[i]))) i++;
    *out(sum) = static_cast<float>(n - i);
}

// --- which nodes

node_call by_rows(node_kernel run, const tensor * source) { return {run, static_cast<int>(std::min<int64_t>(num_rows(source), 64))}; }
node_call by_elements(node_kernel run, const tensor * node) {
    return {run, static_cast<int>(std::clamp<int64_t>((num_elements(node) + elements_a_task - 1) / elements_a_task, 1, 64))};
}

bool is_column(const tensor * t) { return t->ne[0] == 1 && t->ne[2] == 1 && t->ne[3] == 1; }
bool same_size(const tensor * a, const tensor * b) { return std::equal(std::begin(a->ne), std::end(a->ne), b->ne); }

// x - (x[argmax x] + ln p)
bool is_min_p_distance(const tensor * node) {
    const auto is = [](const tensor * t, op which) { return t != nullptr && host::op_of(t) == which; };
    if (!is(node, op::sub) || num_elements(node->src[1]) != 1) return false;
    const tensor * threshold = host::computed(node->src[1]);
    if (!is(threshold, op::scale) || float_param(threshold, 0) != 1 || !(float_param(threshold, 1) <= 0)) return false;
    const tensor * highest = host::computed(threshold->src[0]);
    if (!is(highest, op::get_rows) || !is(host::computed(highest->src[1]), op::argmax)) return false;
    return host::computed(highest->src[0]) == host::computed(node->src[0]) && host::computed(host::computed(highest->src[1])->src[0]) == host::computed(node->src[0]);
}

node_call selection_call(const tensor * node) {
    const tensor * x = node->src[0];
    if (!is_floats(x)) return {};
    switch (host::op_of(node)) {
        case op::top_k: return is_indices(node) ? by_rows(top_k, x) : node_call{};
        case op::argsort: return is_indices(node) ? by_rows(argsort_rows, x) : node_call{};
        case op::argmax: return is_indices(node) && x->ne[2] == 1 && x->ne[3] == 1 ? by_rows(argmax_rows, x) : node_call{};
        case op::cumsum: return is_floats(node) ? by_rows(cumsum_rows, x) : node_call{};
        case op::sum: return is_floats(node) ? node_call{sum_all, 1} : node_call{};
        case op::soft_max:
            if (!is_floats(node) || node->src[1] != nullptr || node->src[2] != nullptr || x->ne[0] < long_row) return {};
            return float_param(node, 0) > 0 && float_param(node, 1) == 0 ? by_rows(soft_max_rows, x) : node_call{};
        default: return {};
    }
}

node_call small_call(const tensor * node) {
    const tensor *x = node->src[0], *b = node->src[1];
    if (x == nullptr) return {};
    const bool floats = is_floats(node) && is_floats(x) && same_size(node, x);
    switch (host::op_of(node)) {
        case op::unary:
            if (!floats || node->op_params[0] != host::unary_step) return {};
            return by_elements(is_min_p_distance(x) ? step_reached : step_up, node);
        case op::pad: return is_padded_rows(node) ? by_elements(pad_rows, node) : node_call{};
        case op::log: return floats ? by_elements(log_of, node) : node_call{};
        case op::sub: return floats && is_floats(b) && num_elements(b) == 1 ? by_elements(sub_scalar, node) : node_call{};
        case op::clamp: return floats ? by_elements(clamp, node) : node_call{};
        case op::cpy: return is_floats(x) && b == node && is_indices(node) && same_size(node, x) ? by_elements(cast_to_int, node) : node_call{};
        case op::get_rows: {
            const bool words = (is_floats(x) && is_floats(node)) || (is_indices(x) && is_indices(node));
            return words && is_column(x) && is_column(node) && is_indices(b) ? by_elements(gather, node) : node_call{};
        }
        case op::set_rows: return is_floats(x) && is_floats(node) && is_column(x) && is_column(node) && is_indices(b) ? node_call{scatter, 1} : node_call{};
        default: return {};
    }
}

} // namespace

node_call sampling_call_for(const tensor * node) {
    if (find_select(select_op::block_max) == nullptr) return {};
    const node_call selection = selection_call(node);
    return selection.run != nullptr ? selection : small_call(node);
}

node_call drawn_place_call_for(const tensor * cumsum, const tensor * sub, const tensor * step, const tensor * sum) {
    const bool chained = sub->src[0] == cumsum && step->src[0] == sub && sum->src[0] == step;
    if (!chained || sampling_call_for(cumsum).run != cumsum_rows || sampling_call_for(sub).run != sub_scalar || sampling_call_for(step).run != step_up ||
        sampling_call_for(sum).run != sum_all || num_rows(cumsum) != 1 || sub->src[1] == cumsum) {
        return {};
    }
    return {drawn_place, 1};
}

} // namespace alloy::ops
