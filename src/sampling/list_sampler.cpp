#include "sampling/list_sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace alloy::sampling {
namespace {

constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t short_list = 64; // below, the kernel's rounding is not worth its call: the host's own arithmetic

template <class T> T * room(std::vector<T> & v, int64_t n) {
    if (v.size() < static_cast<size_t>(n)) v.resize(static_cast<size_t>(n));
    return v.data();
}

bool is_edit(stage_kind kind) { return kind == stage_kind::biases || kind == stage_kind::penalties; }
bool sorts(stage_kind kind) { return kind == stage_kind::top_k || kind == stage_kind::top_p || kind == stage_kind::first; }

} // namespace

bool runs_as_list(std::span<const stage> stages) {
    bool sorted = false, filtered = false, edits = true;
    for (size_t i = 0; i < stages.size(); i++) {
        const stage & s = stages[i];
        if (s.kind == stage_kind::biases && i > 0) return false;
        edits = edits && is_edit(s.kind);
        if (is_edit(s.kind) && !edits) return false;
        const bool thinned = filtered && !sorted;
        if (s.kind == stage_kind::top_k && (sorted || filtered)) return false;
        if (thinned && (s.kind == stage_kind::top_p || s.kind == stage_kind::min_p)) return false;
        sorted = sorted || sorts(s.kind);
        filtered = filtered || s.kind == stage_kind::min_p;
    }
    return true;
}

int64_t places_after(std::span<const stage> stages, int64_t n) {
    for (const stage & s : stages) {
        if (s.kind == stage_kind::top_k) n = std::min(n, s.k);
        if (s.kind == stage_kind::first) n = 1;
    }
    return n;
}

// --- the row

void list_sampler::edit(list & l, const stage & s) {
    const float * before = l.values;
    if (before != edited_.data()) {
        std::copy_n(before, l.n, room(edited_, l.n));
        l.values = edited_.data();
    }
    for (size_t i = 0; i < s.tokens.size(); i++) {
        const int32_t token = s.tokens[i];
        if (token < 0 || token >= l.n) continue;
        float & x = edited_[static_cast<size_t>(token)];
        if (s.kind == stage_kind::biases) {
            x = before[token] + s.values[i];
            continue;
        }
        const auto count = static_cast<float>(s.counts[i]);
        if (!(count > 0)) continue;
        x *= x > 0 ? s.repeat_above : s.repeat_below;
        x = x - count * s.frequency - s.presence;
    }
}

void list_sampler::measure(list & l, bool with_lanes) {
    block_maxima(l.values, l.m, memory_, with_lanes);
    l.highest = highest_of(memory_, l.m);
}

// --- filters

void list_sampler::top_k(list & l, int64_t k) {
    k = std::min(k, l.n);
    measure(l, select_blocks(l.n) < 2 * k);
    const int64_t found = top_ranks(l.values, l.n, k, memory_, true);
    float * values = room(list_values_, found);
    int32_t * ids = room(list_ids_, found);
    for (int64_t i = 0; i < found; i++) {
        const rank r = memory_.ranks[static_cast<size_t>(i)];
        ids[i] = id_of(r);
        values[i] = l.values[id_of(r)];
    }
    l = {values, nullptr, ids, found, found, l.highest, true};
}

// The share of each place in the mass of the list, running; the first to reach p stays.
void list_sampler::top_p(list & l, float p, int32_t * candidates) {
    const bool whole = !l.sorted;
    if (whole) measure(l);
    if (!std::isfinite(l.highest)) { // no sum reaches p: the first stays
        if (whole) {
            int32_t * ids = room(sorted_ids_, l.n);
            argsort(l.values, l.n, true, ids, memory_);
            l.ids = ids;
            room(list_values_, 1)[0] = l.highest;
            l.values = list_values_.data();
        }
        l.m = std::min<int64_t>(l.m, 1);
        l.sorted = true;
        return;
    }
    const auto share = static_cast<float>(1 / weigh(l, nullptr));
    if (whole) {
        int32_t * ids = candidates != nullptr ? candidates : room(sorted_ids_, l.n);
        argsort(l.values, l.n, true, ids, memory_);
        const float * row = l.values;
        float * values = room(list_values_, l.n);
        l = {values, nullptr, ids, l.n, l.n, l.highest, true};
        l.m = nucleus(l, share, p, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++) values[i] = row[ids[i]];
        });
    } else {
        l.m = nucleus(l, share, p, [](int64_t, int64_t) {});
    }
}

// How many hold the share p of a sorted list. In pieces, since most often the first does; `fill` makes their values.
template <class Fill> int64_t list_sampler::nucleus(const list & l, float share, float p, Fill fill) {
    constexpr int64_t piece = 512;
    double run = 0;
    for (int64_t begin = 0; begin < l.m; begin += piece) {
        const int64_t end = std::min(l.m, begin + piece);
        fill(begin, end);
        list part = l;
        part.values += begin;
        part.m = end - begin;
        const float * e = room(weights_, piece);
        weigh(part, weights_.data());
        for (int64_t i = begin; i < end; i++) {
            run += static_cast<double>(e[i - begin] * share);
            if (!(static_cast<float>(run) < p)) return i + 1;
        }
    }
    return l.m;
}

void list_sampler::min_p(list & l, float log_p) {
    if (!l.sorted) measure(l);
    const float lowest = l.highest + log_p;
    if (l.sorted) {
        int64_t m = 0;
        while (m < l.m && l.values[m] >= lowest) m++;
        l.m = std::max<int64_t>(m, 1);
        return;
    }
    range_.maxima.swap(memory_.maxima);
    l.m = find_range(l.values, l.n, lowest, inf, range_, true);
    l.places = range_.ids.data();
    l.values = range_.values.data();
}

void list_sampler::first(list & l) {
    if (l.sorted && l.m > 0) {
        l.n = l.m = 1;
        return;
    }
    measure(l);
    const int64_t at = l.m > 0 ? first_of_maxima(l.values, l.m, memory_) : 0;
    const int64_t place = l.m == 0 ? 0 : l.places != nullptr ? l.places[at] : at;
    room(list_ids_, 1)[0] = l.ids != nullptr ? l.ids[place] : static_cast<int32_t>(place);
    room(list_values_, 1)[0] = l.m > 0 ? l.values[at] : -inf;
    l = {list_values_.data(), nullptr, list_ids_.data(), 1, 1, list_values_[0], true};
}

// --- weights

// exp(value - highest) of all that are left, into `exps` unless null; their sum, and sums_ by block.
double list_sampler::weigh(const list & l, float * exps) {
    double * sums = room(sums_, std::max<int64_t>(1, select_blocks(l.m)));
    if (l.m < short_list) {
        sums[0] = 0;
        for (int64_t i = 0; i < l.m; i++) {
            const float e = l.values[i] == l.values[i] ? std::exp(l.values[i] - l.highest) : 0;
            if (exps != nullptr) exps[i] = e;
            sums[0] += static_cast<double>(e);
        }
        return sums[0];
    }
    select_args args{};
    args.x = l.values;
    args.n = l.m;
    args.shift = l.highest;
    args.scale = 1;
    args.sums = sums;
    args.exps = exps;
    static const select_kernel exp_sums = find_select(select_op::exp_sums);
    exp_sums(args);
    return std::accumulate(sums, sums + select_blocks(l.m), 0.0);
}

// The host clamps probabilities at 1e-10 before the logarithm, so what is masked counts as well.
float list_sampler::dynamic_temperature(const list & l, const stage & s) {
    constexpr float least = 1e-10f;
    float * e = room(weights_, l.m);
    const double sum = weigh(l, e);
    const auto share = static_cast<float>(1 / sum);
    double entropy = static_cast<double>(l.n - l.m) * static_cast<double>(least * -std::log(least));
    for (int64_t i = 0; i < l.m; i++) {
        const float p = std::max(e[i] * share, least);
        entropy -= static_cast<double>(p * std::log(p));
    }
    return std::exp(std::log(static_cast<float>(entropy) * s.entropy_factor) * s.exponent) * s.span + s.base;
}

// Into `direct` where it is the list of results.
void list_sampler::scale(list & l, const stage & s, float * direct) {
    const float divisor = s.kind == stage_kind::dynamic_temperature ? dynamic_temperature(l, s) : 1;
    float * y = direct != nullptr && l.places == nullptr ? direct : room(scaled_, l.m);
    if (s.kind == stage_kind::temperature) {
        for (int64_t i = 0; i < l.m; i++) y[i] = l.values[i] * s.factor;
        l.highest *= s.factor;
    } else {
        for (int64_t i = 0; i < l.m; i++) y[i] = l.values[i] / divisor;
        l.highest /= divisor;
    }
    l.values = y;
}

// --- results

void list_sampler::write_list(const list & l, const list_results & out) const {
    if (out.logits != nullptr && l.places == nullptr) {
        if (out.logits != l.values) std::copy_n(l.values, l.m, out.logits);
        std::fill(out.logits + l.m, out.logits + l.n, -inf);
    } else if (out.logits != nullptr) {
        std::fill_n(out.logits, l.n, -inf);
        for (int64_t i = 0; i < l.m; i++) out.logits[l.places[i]] = l.values[i];
    }
    if (out.candidates != nullptr && l.ids != nullptr && out.candidates != l.ids) std::copy_n(l.ids, l.n, out.candidates);
}

// The block in which the running sum exceeds the uniform, then the place in it. -1: none does.
int64_t list_sampler::place_of_uniform(const float * weights, int64_t m, double share, float uniform) const {
    const auto exceeds = [&](double run) { return static_cast<float>(run) > uniform; };
    double before = 0;
    int64_t i = 0;
    if (m >= short_list) {
        for (int64_t b = 0; b < select_blocks(m) && !exceeds(before + sums_[static_cast<size_t>(b)] * share); b++, i += select_block) {
            before += sums_[static_cast<size_t>(b)] * share;
        }
    }
    while (i < m && !exceeds(before += static_cast<double>(weights[i]))) i++;
    return i < m ? i : -1;
}

void list_sampler::draw(const list & l, float uniform, const list_results & out) {
    const bool direct = out.probabilities != nullptr && l.places == nullptr;
    float * p = direct ? out.probabilities : room(weights_, l.m);
    if (out.probabilities != nullptr) std::fill(out.probabilities + (direct ? l.m : 0), out.probabilities + l.n, 0.0f);
    int64_t place = l.n - 1;
    if (std::isfinite(l.highest)) {
        const double sum = weigh(l, p);
        const auto share = static_cast<float>(1 / sum);
        for (int64_t i = 0; i < l.m; i++) p[i] *= share;
        int64_t at = place_of_uniform(p, l.m, 1 / sum, uniform);
        if (at < 0) { // rounding kept the sum below: the last that has a share
            at = l.m - 1;
            while (at > 0 && !(p[at] > 0)) at--;
        }
        place = l.places != nullptr ? l.places[at] : at;
    } else {
        for (int64_t i = 0; i < l.m; i++) p[i] = l.values[i] == l.highest ? nan : 0;
    }
    if (out.probabilities != nullptr && !direct) {
        for (int64_t i = 0; i < l.m; i++) out.probabilities[l.places[i]] = p[i];
    }
    if (out.sampled != nullptr) *out.sampled = l.ids != nullptr ? l.ids[place] : static_cast<int32_t>(place);
}

void list_sampler::run(const float * logits, int64_t n, std::span<const stage> stages, ending end, float uniform, const list_results & out) {
    list l = {logits, nullptr, nullptr, n, n, 0, false};
    bool measured = false;
    for (size_t i = 0; i < stages.size(); i++) {
        const stage & s = stages[i];
        const bool last = i + 1 == stages.size();
        switch (s.kind) {
            case stage_kind::biases:
            case stage_kind::penalties: edit(l, s); break;
            case stage_kind::top_k: top_k(l, s.k); break;
            case stage_kind::top_p: top_p(l, s.p, places_after(stages.subspan(i + 1), l.n) == l.n ? out.candidates : nullptr); break;
            case stage_kind::min_p: min_p(l, s.p); break;
            case stage_kind::temperature:
            case stage_kind::dynamic_temperature:
                if (!measured && !l.sorted && l.places == nullptr) measure(l);
                scale(l, s, last ? out.logits : nullptr);
                break;
            case stage_kind::first: first(l); break;
        }
        measured = !is_edit(s.kind);
    }
    if (!measured && end != ending::list) measure(l);
    write_list(l, out);
    if (end == ending::draw) draw(l, uniform, out);
    if (end == ending::argmax && out.sampled != nullptr) {
        const int32_t at = l.sorted || l.m == 0 ? 0 : argmax(l.values, l.m, memory_);
        *out.sampled = l.places != nullptr && l.m > 0 ? l.places[at] : at;
    }
}

} // namespace alloy::sampling
