#include "kv/head_rates.h"

#include "kernels/codec/codec.h"
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

constexpr int64_t cells = attention_block;
using rows = std::vector<float>; // [cells][d]

float dot(const float * a, const float * b, int64_t n) {
    float sum[8] = {};
    for (int64_t i = 0; i < n; i += 8) {
        for (int j = 0; j < 8; j++) sum[j] += a[i + j] * b[i + j];
    }
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

// What is lost of rows in a codec; empty when they cannot be encoded.
rows error_of(const rows & x, kv_codec codec, int64_t d) {
    std::vector<uint8_t> page(static_cast<size_t>(kv_codec_page_bytes(codec, d)));
    rows back(x.size());
    if (!find_encode(codec)({x.data(), d * static_cast<int64_t>(sizeof(float)), d, page.data()})) return {};
    find_attention(cell_type_of_codec(codec))->expand(page.data(), kv_codec_row_bytes(codec, d), cells, d, back.data());
    for (size_t i = 0; i < x.size(); i++) back[i] -= x[i];
    return back;
}

// Of one KV head: the squared probabilities of cells in the sampled queries, summed up for values, and times |v - o|^2 for keys.
struct weights_of_cells {
    std::vector<float> of_values; // [cells]
    std::vector<float> of_keys;   // [queries][cells]
    std::vector<float> queries;   // [queries][d_k], in the transform of sealed pages
    int64_t num_queries;
};

weights_of_cells weigh(const attention_sample & seen, int64_t head, const rows & k, const rows & v, int64_t rotation_k, int64_t rotation_v) {
    const int64_t group = seen.heads / seen.kv_heads, queries = group * seen.tokens();
    const float * q = seen.q.data() + head * queries * seen.d_k;
    weights_of_cells w{rows(cells), rows(static_cast<size_t>(queries * cells)), {q, q + queries * seen.d_k}, queries};
    rows out(seen.out.begin() + head * queries * seen.d_v, seen.out.begin() + (head + 1) * queries * seen.d_v);
    if (rotation_k > 0) hadamard_in_place(w.queries.data(), queries * seen.d_k / rotation_k, rotation_k);
    if (rotation_v > 0) hadamard_in_place(out.data(), queries * seen.d_v / rotation_v, rotation_v);
    for (int64_t r = 0; r < queries; r++) {
        const float *of_query = w.queries.data() + r * seen.d_k, *o = out.data() + r * seen.d_v;
        const float o_energy = dot(o, o, seen.d_v);
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
    layer made{const_cast<cache_tensor *>(&keys), const_cast<cache_tensor *>(&values), {}, 0};
    made.damage[0].resize(static_cast<size_t>(keys.heads()) * options);
    made.damage[1].resize(static_cast<size_t>(keys.heads()) * options);
    layers_.push_back(std::move(made));
    return layers_.back();
}

void head_rates::measure(const cache_tensor & keys, const cache_tensor & values, int64_t block, const attention_sample & seen) {
    layer & l = of(keys, values);
    const double out_energy = dot(seen.out.data(), seen.out.data(), static_cast<int64_t>(seen.out.size()));
    if (!(out_energy > 0)) return;
    const auto means = keys.means_for(block);
    for (int64_t head = 0; head < seen.kv_heads; head++) {
        const rows k = keys.turned_rows(block, head), v = values.turned_rows(block, head);
        const weights_of_cells w = weigh(seen, head, k, v, keys.rotation(), values.rotation());
        rows without_mean = k;
        means->add(head, -1, without_mean);
        size_t option = static_cast<size_t>(head) * options;
        for (const kv_codec codec : choices(false)) {
            const rows lost = error_of(without_mean, codec, seen.d_k);
            double damage = 0;
            for (int64_t r = 0; r < w.num_queries && !lost.empty(); r++) {
                for (int64_t c = 0; c < cells; c++) {
                    const float off = seen.scale * dot(w.queries.data() + r * seen.d_k, lost.data() + c * seen.d_k, seen.d_k);
                    damage += w.of_keys[static_cast<size_t>(r * cells + c)] * off * off;
                }
            }
            l.damage[0][option++] += damage / out_energy;
        }
        option = static_cast<size_t>(head) * options;
        for (const kv_codec codec : choices(true)) {
            const rows lost = error_of(v, codec, seen.d_v);
            double damage = 0;
            for (int64_t c = 0; c < cells && !lost.empty(); c++) {
                const float * row = lost.data() + c * seen.d_v;
                damage += w.of_values[static_cast<size_t>(c)] * dot(row, row, seen.d_v);
            }
            l.damage[1][option++] += damage / out_energy;
        }
    }
    l.blocks++;
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
    std::priority_queue<upgrade> queue;
    const auto offer = [&](layer & l, bool values, int64_t head, size_t to) {
        if (to >= codecs[values].size()) return;
        const double * damage = l.damage[values].data() + static_cast<size_t>(head) * options;
        queue.push({(damage[to - 1] - damage[to]) / static_cast<double>(l.blocks) / (bytes(l, values, to) - bytes(l, values, to - 1)), &l, values, head, to});
    };
    double left = 0;
    for (layer & l : layers_) {
        if (l.blocks == 0) continue;
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
