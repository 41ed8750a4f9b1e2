#include "ops/sampling_chain.h"

#include "host/ops.h"
#include "ops/operands.h"

#include <algorithm>
#include <cmath>
#include <span>

namespace alloy::ops {
namespace {

using host::op;
using host::tensor;
using sampling::stage;
using sampling::stage_kind;

constexpr size_t longest_chain = 96; // nodes; all samplers of the host together have about 70

// What a reshaped tensor was. Views with an offset stay what they are.
tensor * under(tensor * t) {
    while (t != nullptr && host::op_of(t) == op::reshape) t = t->src[0];
    return t;
}
bool is_dense_f32(const tensor * t) { return t->type == host::type_f32 && is_dense(t); }
bool is_row_view(const tensor * t) {
    if (t == nullptr || host::op_of(t) != op::view || t->src[0] == nullptr || !is_padded_rows(t->src[0]) || !is_dense_f32(t)) return false;
    const tensor * pad = t->src[0];
    const size_t bytes = pad->nb[1];
    return t->view_src == pad && t->ne[0] == pad->ne[0] && num_elements(t) == t->ne[0] && t->view_offs % bytes == 0 &&
           static_cast<int64_t>(t->view_offs / bytes) < pad->src[0]->ne[1];
}
// An input of the graph: nobody computes it.
bool is_leaf(const tensor * t, int type) { return t != nullptr && host::op_of(t) == op::none && t->type == type && t->view_src == nullptr; }

// Follows a chain from its row of logits through the nodes from live[at] on, one sampler after the other.
class finder {
  public:
    finder(std::span<tensor * const> live, sampling_chain & chain) : chain_(chain), window_(live.first(std::min(live.size(), longest_chain))) {}

    bool find() {
        if (!find_row()) return false;
        while (add_stage()) {}
        const bool ends = find_draw() || find_argmax();
        if (!ends) chain_.end = sampling::ending::list;
        chain_.results.logits = logits_ == chain_.row ? nullptr : logits_;
        chain_.results.candidates = candidates_;
        return !taken_.empty() && is_beginning() && sampling::runs_as_list(chain_.stages);
    }

  private:
    // The node with this operation whose source s is `source` (reshaped or not), null if there is none or several.
    tensor * reader(op which, int s, const tensor * source) const {
        tensor * found = nullptr;
        for (tensor * node : window_) {
            if (host::op_of(node) != which || under(node->src[s]) != source) continue;
            if (found != nullptr) return nullptr;
            found = node;
        }
        return found;
    }
    tensor * unary_reader(int which, const tensor * source) const {
        for (tensor * node : window_) {
            if (host::op_of(node) == op::unary && node->op_params[0] == which && under(node->src[0]) == source) return node;
        }
        return nullptr;
    }
    static bool is(const tensor * t, op which) { return t != nullptr && host::op_of(t) == which; }
    static bool is_step_of(const tensor * t, const tensor * source) {
        return is(t, op::unary) && t->op_params[0] == host::unary_step && under(t->src[0]) == source;
    }
    static bool is_scale(const tensor * t, float factor, float bias) { return is(t, op::scale) && float_param(t, 0) == factor && float_param(t, 1) == bias; }

    bool take(std::initializer_list<tensor *> nodes) {
        for (tensor * node : nodes) {
            if (std::find(window_.begin(), window_.end(), node) == window_.end()) return false;
        }
        taken_.insert(taken_.end(), nodes);
        return true;
    }
    // The sampler's nodes are all there: the list goes on as `logits`.
    bool add(const stage & s, std::initializer_list<tensor *> nodes, tensor * logits, const sampling_chain::stage_inputs & inputs = {}) {
        if (!take(nodes)) return false;
        chain_.stages.push_back(s);
        chain_.inputs.push_back(inputs);
        logits_ = logits;
        return true;
    }

    bool find_row() {
        for (size_t i = 0; i < std::min<size_t>(window_.size(), 4) && logits_ == nullptr; i++) {
            for (tensor * source : window_[i]->src) {
                if (source != nullptr && is_row_view(under(source))) logits_ = under(source);
            }
        }
        if (logits_ == nullptr) return false;
        chain_.row = logits_;
        chain_.pad = logits_->src[0];
        return true;
    }

    bool add_stage() { return add_biases() || add_penalties() || add_top_k() || add_top_p() || add_min_p() || add_first() || add_temperature() || add_dynamic_temperature(); }

    // FILL(0), SET_ROWS of biases, ADD
    bool add_biases() {
        tensor * zeros = reader(op::fill, 0, logits_);
        tensor * sum = reader(op::add, 0, logits_);
        if (zeros == nullptr || sum == nullptr || float_param(zeros, 0) != 0 || logits_ != chain_.row) return false;
        tensor * rows = under(sum->src[1]);
        if (!is(rows, op::set_rows) || under(rows->src[2]) != zeros || !is_leaf(rows->src[0], host::type_f32) || !is_leaf(rows->src[1], host::type_i32)) return false;
        if (num_elements(rows->src[0]) != num_elements(rows->src[1])) return false;
        return add({.kind = stage_kind::biases}, {zeros, rows, sum}, sum, {.values = rows->src[0], .tokens = rows->src[1]});
    }

    // GET_ROWS of the logits of tokens that have been there, arithmetic with their counts, SET_ROWS back
    bool add_penalties() {
        tensor * gathered = reader(op::get_rows, 0, logits_);
        tensor * rows = reader(op::set_rows, 2, logits_);
        if (gathered == nullptr || rows == nullptr || candidates_ != nullptr || !is_leaf(gathered->src[1], host::type_i32) || rows->src[1] != gathered->src[1]) return false;
        stage s{.kind = stage_kind::penalties};
        tensor * counts = nullptr;
        for (tensor * node : window_) {
            if (counts == nullptr && is(node, op::cpy) && is_leaf(node->src[0], host::type_i32) && node->type == host::type_f32) counts = node;
        }
        if (counts != nullptr && num_elements(counts) != num_elements(gathered)) return false;
        tensor * active = counts != nullptr ? unary_reader(host::unary_step, counts) : nullptr;
        if (active == nullptr) return false;
        std::vector<tensor *> nodes = {gathered, rows, counts, active};
        tensor * x = under(rows->src[0]);
        if (is(x, op::sub) && is(under(x->src[1]), op::scale) && under(under(x->src[1])->src[0]) == active) { // presence
            s.presence = float_param(under(x->src[1]), 0);
            if (!is_scale(under(x->src[1]), s.presence, 0)) return false;
            nodes.insert(nodes.end(), {x, under(x->src[1])});
            x = under(x->src[0]);
        }
        if (is(x, op::sub) && is(under(x->src[1]), op::scale) && under(under(x->src[1])->src[0]) == counts) { // frequency
            s.frequency = float_param(under(x->src[1]), 0);
            if (!is_scale(under(x->src[1]), s.frequency, 0)) return false;
            nodes.insert(nodes.end(), {x, under(x->src[1])});
            x = under(x->src[0]);
        }
        if (is(x, op::mul) && under(x->src[0]) == gathered) {
            if (!find_repeat(x, gathered, active, s, nodes)) return false;
            x = gathered;
        }
        if (x != gathered) return false;
        for (tensor * node : nodes) {
            if (!take({node})) return false;
        }
        return add(s, {}, rows, {.tokens = gathered->src[1], .counts = counts->src[0]});
    }

    // x * ((step(x) / r + (1 - step(x)) * r) * active + (1 - active))
    bool find_repeat(tensor * product, tensor * gathered, tensor * active, stage & s, std::vector<tensor *> & nodes) {
        const auto complement = [&](tensor * t, tensor * of) { // 1 - of
            if (!is(t, op::sub) || under(t->src[1]) != of || !is(under(t->src[0]), op::fill) || float_param(under(t->src[0]), 0) != 1) return false;
            nodes.insert(nodes.end(), {t, under(t->src[0])});
            return true;
        };
        tensor * scales = under(product->src[1]);
        if (!is(scales, op::add) || !complement(under(scales->src[1]), active)) return false;
        tensor * masked = under(scales->src[0]);
        if (!is(masked, op::mul) || under(masked->src[1]) != active) return false;
        tensor * both = under(masked->src[0]);
        if (!is(both, op::add)) return false;
        tensor *above = under(both->src[0]), *below = under(both->src[1]);
        if (!is(above, op::scale) || !is(below, op::scale) || float_param(above, 1) != 0 || float_param(below, 1) != 0) return false;
        tensor * positive = under(above->src[0]);
        if (!is_step_of(positive, gathered) || !complement(under(below->src[0]), positive)) return false;
        s.repeat_above = float_param(above, 0);
        s.repeat_below = float_param(below, 0);
        nodes.insert(nodes.end(), {product, scales, masked, both, above, below, positive});
        return true;
    }

    // TOP_K, GET_ROWS
    bool add_top_k() {
        tensor * ids = reader(op::top_k, 0, logits_);
        tensor * values = ids != nullptr ? reader(op::get_rows, 0, logits_) : nullptr;
        if (values == nullptr || under(values->src[1]) != ids || candidates_ != nullptr) return false;
        if (!add({.kind = stage_kind::top_k, .k = ids->ne[0]}, {ids, values}, values)) return false;
        candidates_ = ids;
        return true;
    }

    // ARGSORT, GET_ROWS (and of candidates), SOFT_MAX, CUMSUM, p - cdf, STEP, SUM, CLAMP, CPY, SET_ROWS of a one, LOG, ADD
    bool add_top_p() {
        tensor * ids = reader(op::argsort, 0, logits_);
        tensor * sorted = ids != nullptr ? reader(op::get_rows, 0, logits_) : nullptr;
        if (sorted == nullptr || under(sorted->src[1]) != ids || ids->op_params[0] != host::sort_descending) return false;
        tensor * shares = shares_of(sorted);
        tensor * cdf = shares != nullptr ? reader(op::cumsum, 0, shares) : nullptr;
        tensor * left = cdf != nullptr ? reader(op::scale, 0, cdf) : nullptr;
        tensor * mask = left != nullptr && float_param(left, 0) == -1 ? unary_reader(host::unary_step, left) : nullptr;
        tensor * count = mask != nullptr ? reader(op::sum, 0, mask) : nullptr;
        tensor * place = count != nullptr ? reader(op::clamp, 0, count) : nullptr;
        if (place == nullptr || float_param(place, 0) != 0 || float_param(place, 1) != static_cast<float>(num_elements(mask) - 1)) return false;
        tensor *one = reader(op::scale, 0, place), *index = reader(op::cpy, 0, place), *rows = reader(op::set_rows, 2, mask);
        if (one == nullptr || index == nullptr || rows == nullptr || !is_scale(one, 0, 1) || under(rows->src[0]) != one || under(rows->src[1]) != index) return false;
        tensor * bias = reader(op::log, 0, rows);
        tensor * result = bias != nullptr ? reader(op::add, 0, sorted) : nullptr;
        if (result == nullptr || under(result->src[1]) != bias) return false;
        tensor * candidates = candidates_ != nullptr ? reader(op::get_rows, 0, candidates_) : ids;
        if (candidates == nullptr || (candidates != ids && under(candidates->src[1]) != ids)) return false;
        if (!add({.kind = stage_kind::top_p, .p = float_param(left, 1)}, {ids, sorted, shares, cdf, left, mask, count, place, one, index, rows, bias, result}, result)) return false;
        if (candidates != ids && !take({candidates})) return false;
        candidates_ = candidates;
        return true;
    }

    // ARGMAX, GET_ROWS, + ln p, SUB, STEP, LOG, ADD
    bool add_min_p() {
        tensor *highest = reader(op::argmax, 0, logits_), *distance = reader(op::sub, 0, logits_);
        tensor * value = highest != nullptr && distance != nullptr ? reader(op::get_rows, 0, logits_) : nullptr;
        if (value == nullptr || under(value->src[1]) != highest) return false;
        tensor * threshold = under(distance->src[1]);
        if (!is(threshold, op::scale) || under(threshold->src[0]) != value || float_param(threshold, 0) != 1 || !(float_param(threshold, 1) <= 0)) return false;
        tensor * mask = unary_reader(host::unary_step, distance);
        tensor * bias = mask != nullptr ? reader(op::log, 0, mask) : nullptr;
        tensor * result = bias != nullptr ? reader(op::add, 0, logits_) : nullptr;
        if (result == nullptr || under(result->src[1]) != bias) return false;
        return add({.kind = stage_kind::min_p, .p = float_param(threshold, 1)}, {highest, distance, value, threshold, mask, bias, result}, result);
    }

    // Temperature 0: ARGMAX, GET_ROWS (and of candidates)
    bool add_first() {
        tensor * highest = reader(op::argmax, 0, logits_);
        tensor * value = highest != nullptr ? reader(op::get_rows, 0, logits_) : nullptr;
        if (value == nullptr || under(value->src[1]) != highest || reader(op::sub, 0, logits_) != nullptr) return false;
        tensor * candidate = candidates_ != nullptr ? reader(op::get_rows, 0, candidates_) : highest;
        if (candidate == nullptr || (candidate != highest && under(candidate->src[1]) != highest)) return false;
        if (!add({.kind = stage_kind::first}, {highest, value}, value)) return false;
        if (candidate != highest && !take({candidate})) return false;
        candidates_ = candidate;
        return true;
    }

    // SCALE
    bool add_temperature() {
        tensor * scaled = reader(op::scale, 0, logits_);
        if (scaled == nullptr || float_param(scaled, 1) != 0 || !(float_param(scaled, 0) > 0) || !std::isfinite(float_param(scaled, 0))) return false;
        return add({.kind = stage_kind::temperature, .factor = float_param(scaled, 0)}, {scaled}, scaled);
    }

    // SOFT_MAX, CLAMP, LOG, MUL, SUM, SCALE twice, LOG, SCALE, EXP, SCALE, DIV
    bool add_dynamic_temperature() {
        tensor * result = reader(op::div, 0, logits_);
        tensor * shares = result != nullptr ? shares_of(logits_) : nullptr;
        tensor * clamped = shares != nullptr ? reader(op::clamp, 0, shares) : nullptr;
        if (clamped == nullptr || float_param(clamped, 0) != 1e-10f || float_param(clamped, 1) != 1) return false;
        tensor *logs = reader(op::log, 0, clamped), *products = reader(op::mul, 0, clamped);
        if (logs == nullptr || products == nullptr || under(products->src[1]) != logs) return false;
        tensor * sum = reader(op::sum, 0, products);
        tensor * entropy = sum != nullptr ? reader(op::scale, 0, sum) : nullptr;
        tensor * share = entropy != nullptr && is_scale(entropy, -1, 0) ? reader(op::scale, 0, entropy) : nullptr;
        tensor * log = share != nullptr && float_param(share, 1) == 0 ? reader(op::log, 0, share) : nullptr;
        tensor * times = log != nullptr ? reader(op::scale, 0, log) : nullptr;
        tensor * power = times != nullptr && float_param(times, 1) == 0 ? unary_reader(host::unary_exp, times) : nullptr;
        tensor * divisor = power != nullptr ? reader(op::scale, 0, power) : nullptr;
        if (divisor == nullptr || under(result->src[1]) != divisor) return false;
        const stage s = {.kind = stage_kind::dynamic_temperature, .entropy_factor = float_param(share, 0), .exponent = float_param(times, 0),
                         .span = float_param(divisor, 0), .base = float_param(divisor, 1)};
        return add(s, {shares, clamped, logs, products, sum, entropy, share, log, times, power, divisor, result}, result);
    }
    // SOFT_MAX without mask, sinks and scale.
    tensor * shares_of(const tensor * logits) const {
        tensor * t = reader(op::soft_max, 0, logits);
        return t != nullptr && t->src[1] == nullptr && t->src[2] == nullptr && float_param(t, 0) == 1 && float_param(t, 1) == 0 ? t : nullptr;
    }

    // SOFT_MAX, CUMSUM, - uniform, STEP, SUM, CLAMP, n - s, CPY (, GET_ROWS of candidates)
    bool find_draw() {
        tensor * shares = shares_of(logits_);
        tensor * cdf = shares != nullptr ? reader(op::cumsum, 0, shares) : nullptr;
        tensor * distance = cdf != nullptr ? reader(op::sub, 0, cdf) : nullptr;
        if (distance == nullptr || !is_leaf(distance->src[1], host::type_f32) || num_elements(distance->src[1]) != 1) return false;
        tensor * mask = unary_reader(host::unary_step, distance);
        tensor * count = mask != nullptr ? reader(op::sum, 0, mask) : nullptr;
        tensor * clamped = count != nullptr ? reader(op::clamp, 0, count) : nullptr;
        if (clamped == nullptr) return false;
        const auto n = static_cast<float>(num_elements(mask));
        tensor * place = float_param(clamped, 0) == 1 && float_param(clamped, 1) == n ? reader(op::scale, 0, clamped) : nullptr;
        tensor * index = place != nullptr && is_scale(place, -1, n) ? reader(op::cpy, 0, place) : nullptr;
        if (index == nullptr || index->type != host::type_i32) return false;
        tensor * sampled = candidates_ != nullptr ? reader(op::get_rows, 0, candidates_) : index;
        if (sampled == nullptr || (sampled != index && under(sampled->src[1]) != index)) return false;
        if (!take({shares, cdf, distance, mask, count, clamped, place, index}) || (sampled != index && !take({sampled}))) return false;
        chain_.end = sampling::ending::draw;
        chain_.uniform = distance->src[1];
        chain_.results.sampled = sampled;
        chain_.results.probabilities = shares;
        return true;
    }

    bool find_argmax() {
        tensor * highest = reader(op::argmax, 0, logits_);
        if (highest == nullptr || !take({highest})) return false;
        chain_.end = sampling::ending::argmax;
        chain_.results.sampled = highest;
        return true;
    }

    // Whether what was taken are the first nodes of the window, each once.
    bool is_beginning() {
        for (size_t i = 0; i < taken_.size(); i++) {
            if (std::count(taken_.begin(), taken_.end(), window_[i]) != 1) return false;
        }
        chain_.nodes.assign(window_.begin(), window_.begin() + static_cast<ptrdiff_t>(taken_.size()));
        return true;
    }

    sampling_chain & chain_;
    std::span<tensor * const> window_;
    std::vector<tensor *> taken_;
    tensor *logits_ = nullptr, *candidates_ = nullptr;
};

template <class T> std::span<const T> elements(const tensor * t) {
    return t != nullptr ? std::span<const T>(static_cast<const T *>(t->data), static_cast<size_t>(num_elements(t))) : std::span<const T>();
}
template <class T> T * data_of(tensor * t) { return t != nullptr ? static_cast<T *>(t->data) : nullptr; }

} // namespace

bool is_padded_rows(const tensor * node) {
    if (host::op_of(node) != op::pad) return false;
    const tensor * rows = node->src[0];
    if (rows == nullptr || !is_dense_f32(rows) || !is_dense_f32(node) || rows->ne[2] != 1 || rows->ne[3] != 1 || num_elements(rows) <= 0) return false;
    for (int i = 0; i < 9; i++) {
        if (i != 3 && node->op_params[i] != 0) return false;
    }
    return node->ne[0] == rows->ne[0] && node->ne[1] == rows->ne[1] + node->op_params[3] && node->op_params[3] >= 0 && rows->ne[0] < (int64_t{1} << 31);
}

bool can_run_chains() { return find_select(select_op::block_max) != nullptr; }

bool find_sampling_chain(const std::vector<tensor *> & live, size_t at, sampling_chain & chain) {
    return at < live.size() && finder(std::span(live).subspan(at), chain).find();
}

// Rows lie alike with and without others behind them.
const float * sampling_chain::logits() const {
    const tensor * rows = reads_padded() ? pad : pad->src[0];
    return reinterpret_cast<const float *>(static_cast<const char *>(rows->data) + row->view_offs);
}

std::string sampling_chain::name() const {
    static constexpr const char * names[] = {"biases", "penalties", "top_k", "top_p", "min_p", "temperature", "dynamic_temperature", "first"};
    static constexpr const char * endings[] = {"list", "draw", "argmax"};
    std::string text = "chain(";
    for (const stage & s : stages) text += std::string(names[static_cast<int>(s.kind)]) + " ";
    return text + endings[static_cast<int>(end)] + ")";
}

void sampling_chain::run() const {
    static thread_local sampling::list_sampler sampler;
    std::vector<stage> with_data = stages;
    for (size_t i = 0; i < stages.size(); i++) {
        with_data[i].values = elements<float>(inputs[i].values);
        with_data[i].tokens = elements<int32_t>(inputs[i].tokens);
        with_data[i].counts = elements<int32_t>(inputs[i].counts);
    }
    const sampling::list_results out = {data_of<int32_t>(results.sampled), data_of<float>(results.probabilities), data_of<float>(results.logits),
                                        data_of<int32_t>(results.candidates)};
    const float u = uniform != nullptr ? *static_cast<const float *>(uniform->data) : 0;
    sampler.run(logits(), row->ne[0], with_data, end, u, out);
}

} // namespace alloy::ops
