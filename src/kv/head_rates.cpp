#include "kv/head_rates.h"

#include "kernels/rowwise/rowwise.h"
#include "kv/kv.h"

#include <algorithm>
#include <cmath>
#include <queue>

namespace alloy::kv {
namespace {

// Samples that the first assignment rests on; later ones refine it.
constexpr int64_t eager_samples = 8;
constexpr int64_t later_interval = 16;
constexpr size_t most_blocks_weighed = 8; // of each layer in a sample
// What is wrong early is wrong for all layers behind: a layer's damage counts exp(-1.5 depth) times, from 1 in the first to 0.22 in the last.
constexpr double weight_of_depth = 1.5;

constexpr int64_t cells = attention_block;
using rows = std::vector<float>; // [cells][d]

float dot(const float * a, const float * b, int64_t n) {
    float sum[8] = {};
    for (int64_t i = 0; i < n; i += 8) {
        for (int j = 0; j < 8; j++) sum[j] += a[i + j] * b[i + j];
    }
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

// Of one KV head: the squared probabilities of cells in the sampled queries, summed up for values, and times |v - o|^2 for keys.
struct weights_of_cells {
    std::vector<float> of_values; // [cells]
    std::vector<float> of_keys;   // [queries][cells]
    std::vector<float> energy_of_query; // [queries]
    int64_t num_queries;
};

weights_of_cells weigh(const attention_sample & seen, int64_t head, const rows & k, const rows & v, const cache_tensor & keys, const cache_tensor & values) {
    const int64_t group = seen.heads / seen.kv_heads, queries = group * seen.tokens();
    const float * q = seen.q.data() + head * queries * seen.d_k;
    weights_of_cells w{rows(cells), rows(static_cast<size_t>(queries * cells)), rows(static_cast<size_t>(queries)), queries};
    rows turned(q, q + queries * seen.d_k); // as sealed pages want them
    rows out(seen.out.begin() + head * queries * seen.d_v, seen.out.begin() + (head + 1) * queries * seen.d_v);
    keys.balance().divide(head, turned);
    if (keys.rotation() > 0) hadamard_in_place(turned.data(), queries * seen.d_k / keys.rotation(), keys.rotation());
    if (values.rotation() > 0) hadamard_in_place(out.data(), queries * seen.d_v / values.rotation(), values.rotation());
    for (int64_t r = 0; r < queries; r++) {
        const float *of_query = turned.data() + r * seen.d_k, *o = out.data() + r * seen.d_v;
        const float o_energy = dot(o, o, seen.d_v);
        w.energy_of_query[static_cast<size_t>(r)] = dot(of_query, of_query, seen.d_k);
        for (int64_t c = 0; c < cells; c++) {
            const float logit = dot(of_query, k.data() + c * seen.d_k, seen.d_k) * seen.scale * log2_e;
            const float p = std::min(1.0f, std::exp2(logit - seen.log_sum[static_cast<size_t>(head * queries + r)]));
            const float * value = v.data() + c * seen.d_v;
            w.of_values[static_cast<size_t>(c)] += p * p;
            w.of_keys[static_cast<size_t>(r * cells + c)] = p * p * std::max(0.0f, dot(value, value, seen.d_v) - 2 * dot(value, o, seen.d_v) + o_energy);
        }
    }
    return w;
}

} // namespace

bool head_rates::sample_next() {
    if (!on()) return false;
    const int64_t turn = asked_++;
    return turn < eager_samples || turn % later_interval == 0;
}

std::vector<kv_codec> head_rates::choices(bool values) const {
    const auto uniform = static_cast<int>(values ? policy_.values : policy_.keys);
    const int highest = static_cast<int>(kv_codec::i8), lowest = static_cast<int>(values ? kv_codec::n3 : kv_codec::n4); // codecs are listed downwards
    std::vector<kv_codec> found;
    for (int codec = std::min(uniform + 1, lowest); codec >= std::max(uniform - 1, highest); codec--) found.push_back(static_cast<kv_codec>(codec));
    return found;
}

head_rates::layer & head_rates::of(const cache_tensor & keys, const cache_tensor & values) {
    std::lock_guard guard(lock_);
    const auto found = std::find_if(layers_.begin(), layers_.end(), [&](const layer & l) { return l.keys == &keys; });
    if (found != layers_.end()) return *found;
    layer made{const_cast<cache_tensor *>(&keys), const_cast<cache_tensor *>(&values), {}, {}, {}, 0};
    made.damage[0].resize(static_cast<size_t>(keys.heads()) * options);
    made.damage[1].resize(static_cast<size_t>(keys.heads()) * options);
    layers_.push_back(std::move(made));
    return layers_.back();
}

void head_rates::measure(const cache_tensor & keys, const cache_tensor & values, const std::vector<int64_t> & to_seal, int64_t first_block,
                         const attention_sample & seen) {
    layer & l = of(keys, values);
    const double out_energy = dot(seen.out.data(), seen.out.data(), static_cast<int64_t>(seen.out.size()));
    if (!(out_energy > 0)) return;
    for (const int64_t block : to_seal) {
        const auto means = keys.means_for(block);
        for (int64_t head = 0; head < seen.kv_heads; head++) {
            for (const bool of_values : {false, true}) {
                rows x = (of_values ? values : keys).rows_as_sealed(block, head);
                if (!of_values) means->add(head, -1, x);
                l.energy[of_values] += energy(x);
                size_t option = 0;
                for (const kv_codec codec : choices(of_values)) l.lost[of_values][option++] += energy(error_of(x, codec, of_values ? seen.d_v : seen.d_k));
            }
        }
    }
    if (!(l.energy[0] > 0 && l.energy[1] > 0)) return;
    // Some of the blocks stand for all, others in each sample.
    std::vector<int64_t> lossy;
    for (size_t b = 0; b < seen.sees_block.size(); b++) {
        const int64_t block = first_block + static_cast<int64_t>(b);
        const bool counts = keys.is_sealed(block) ? !keys.is_packed(block) : std::find(to_seal.begin(), to_seal.end(), block) != to_seal.end();
        if (seen.sees_block[b] && counts) lossy.push_back(block);
    }
    if (lossy.empty()) return;
    const size_t chosen = std::min(lossy.size(), most_blocks_weighed);
    const double stands_for = static_cast<double>(lossy.size()) / static_cast<double>(chosen) / out_energy;
    for (size_t i = 0; i < chosen; i++) {
        const int64_t block = lossy[(i * lossy.size() / chosen + static_cast<size_t>(l.samples)) % lossy.size()];
        const auto means = keys.means_for(block);
        for (int64_t head = 0; head < seen.kv_heads; head++) {
            rows k = keys.rows_as_sealed(block, head);
            const rows v = values.rows_as_sealed(block, head);
            const weights_of_cells w = weigh(seen, head, k, v, keys, values);
            means->add(head, -1, k);
            double of_keys = 0, of_values = 0; // damage of errors as large as the rows
            for (int64_t c = 0; c < cells; c++) {
                double weight = 0;
                for (int64_t r = 0; r < w.num_queries; r++) weight += w.of_keys[static_cast<size_t>(r * cells + c)] * w.energy_of_query[static_cast<size_t>(r)];
                of_keys += weight * dot(k.data() + c * seen.d_k, k.data() + c * seen.d_k, seen.d_k);
                of_values += w.of_values[static_cast<size_t>(c)] * dot(v.data() + c * seen.d_v, v.data() + c * seen.d_v, seen.d_v);
            }
            of_keys *= seen.scale * seen.scale / static_cast<double>(seen.d_k); // errors of turned rows point anywhere
            for (size_t option = 0; option < options; option++) {
                const size_t at = static_cast<size_t>(head) * options + option;
                l.damage[0][at] += stands_for * of_keys * l.lost[0][option] / l.energy[0];
                l.damage[1][at] += stands_for * of_values * l.lost[1][option] / l.energy[1];
            }
        }
    }
    l.samples++;
}

// Greedy: all heads start with the fewest bits, and the upgrade that saves most damage a byte is next, until the bytes are spent.
void head_rates::assign() {
    struct upgrade {
        double gain; // damage saved a byte
        layer * of;
        bool values;
        int64_t head;
        size_t to;
        bool operator<(const upgrade & other) const { return gain < other.gain; }
    };
    const std::vector<kv_codec> codecs[2] = {choices(false), choices(true)};
    const auto tensor = [](const layer & l, bool values) { return values ? l.values : l.keys; };
    const auto bytes = [&](const layer & l, bool values, size_t option) {
        const cache_tensor & t = *tensor(l, values);
        return static_cast<double>(kv_codec_page_bytes(codecs[values][option], t.d()) * t.num_rows());
    };
    int last_layer = 1;
    for (const layer & l : layers_) last_layer = std::max(last_layer, l.keys->name().layer);
    std::priority_queue<upgrade> queue;
    const auto offer = [&](layer & l, bool values, int64_t head, size_t to) {
        if (to >= codecs[values].size()) return;
        const double * damage = l.damage[values].data() + static_cast<size_t>(head) * options;
        const double weight = std::exp(-weight_of_depth * l.keys->name().layer / last_layer) / static_cast<double>(l.samples);
        queue.push({weight * (damage[to - 1] - damage[to]) / (bytes(l, values, to) - bytes(l, values, to - 1)), &l, values, head, to});
    };
    double left = 0;
    for (layer & l : layers_) {
        if (l.samples == 0) continue;
        for (const bool values : {false, true}) {
            cache_tensor & t = *tensor(l, values);
            left += (policy_.share * static_cast<double>(cells * t.d() * 2) * static_cast<double>(t.num_rows()) - bytes(l, values, 0)) * static_cast<double>(t.heads());
            for (int64_t head = 0; head < t.heads(); head++) {
                t.set_codec(head, codecs[values][0]);
                offer(l, values, head, 1);
            }
        }
    }
    while (!queue.empty()) {
        const upgrade best = queue.top();
        queue.pop();
        const double cost = bytes(*best.of, best.values, best.to) - bytes(*best.of, best.values, best.to - 1);
        if (cost > left) continue;
        left -= cost;
        tensor(*best.of, best.values)->set_codec(best.head, codecs[best.values][best.to]);
        offer(*best.of, best.values, best.head, best.to + 1);
    }
}

} // namespace alloy::kv
