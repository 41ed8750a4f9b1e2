#include "kv/eviction.h"

#include "base/log.h"
#include "kernels/rowwise/rowwise.h"
#include "kv/dot.h"
#include "kv/kv.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>

namespace alloy::kv {
namespace {

constexpr int64_t cells = attention_block, run_blocks = attention_packing::max_blocks;
constexpr int64_t tokens_of_block = 8, observing_blocks = 2, num_tokens = tokens_of_block * observing_blocks;
constexpr uint32_t all_tokens = (uint32_t{1} << num_tokens) - 1;
constexpr int64_t pooled = 3;            // neighbours on each side
constexpr size_t most_waiting_runs = 4;  // of a layer: what was never sealed, or is not seen whole, does not wait for ever

// The number among those who observe a run, of the token in cell `row`; -1: it does not observe. Streams are whole blocks but not whole runs,
// so that runs are counted from the start of the cache.
int64_t observer(int64_t row) {
    const int64_t block = row / cells % run_blocks, place = row % cells - (cells - tokens_of_block);
    return block < observing_blocks && place >= 0 && row >= run_blocks * cells ? block * tokens_of_block + place : -1;
}
int64_t observed_run(int64_t row) { return row / cells / run_blocks - 1; }

} // namespace

void eviction::refuse(const char * why) {
    if (!on()) return;
    refused_ = true;
    ALLOY_WARN("KV cache: GGML_ALLOY_KV_EVICT: no further cell is evicted: %s", why);
}

std::vector<sampled_token> eviction::observers(const std::vector<int64_t> & rows, int64_t stream_begin) {
    std::vector<sampled_token> found;
    for (size_t i = 0; i < rows.size(); i++) {
        if (observer(rows[i]) < 0) continue;
        const int64_t begin = observed_run(rows[i]) * run_blocks * cells - stream_begin;
        if (begin >= 0) found.push_back({static_cast<int64_t>(i), rows[i], begin, begin + run_blocks * cells});
    }
    return found;
}

eviction::layer & eviction::of(cache_tensor & keys, cache_tensor & values) {
    std::lock_guard guard(lock_);
    const auto found = std::find_if(layers_.begin(), layers_.end(), [&](const layer & l) { return l.keys == &keys; });
    if (found != layers_.end()) return *found;
    layers_.push_back({&keys, &values, {}, {}});
    return layers_.back();
}

void eviction::expect(const std::vector<block_write> & writes) {
    if (!on()) return;
    for (const block_write & w : writes) {
        for (int64_t c = cells - tokens_of_block; c < cells; c++) {
            const int64_t row = w.block * cells + c;
            if ((w.cells >> c & 1) == 0 || observer(row) < 0) continue;
            for (layer & l : layers_) {
                const auto waiting = l.waiting.find(observed_run(row));
                if (waiting != l.waiting.end()) waiting->second.seen &= ~(uint32_t{1} << observer(row));
            }
        }
    }
}

void eviction::forget() {
    for (layer & l : layers_) {
        l.waiting.clear();
        l.ready.clear();
    }
}

namespace {

// metric[cell] += the largest of its neighbourhood in each query head's squared probabilities, summed over the tokens.
void add_metric(const float * q, const float * log_sum, const std::vector<float> & k, int64_t d, float scale, int64_t num_cells, float * metric) {
    std::vector<float> squares(static_cast<size_t>(num_cells));
    for (int64_t t = 0; t < num_tokens; t++) {
        for (int64_t c = 0; c < num_cells; c++) {
            const float logit = dot(q + t * d, k.data() + c * d, d) * scale * log2_e;
            const float p = std::min(1.0f, std::exp2(logit - log_sum[t]));
            squares[static_cast<size_t>(c)] += p * p;
        }
    }
    for (int64_t c = 0; c < num_cells; c++) {
        const auto from = squares.begin() + std::max<int64_t>(0, c - pooled), to = squares.begin() + std::min(num_cells, c + pooled + 1);
        metric[c] += *std::max_element(from, to);
    }
}

} // namespace

void eviction::weigh(cache_tensor & keys, cache_tensor & values, const attention_sample & seen) {
    layer & l = of(keys, values);
    const int64_t heads = seen.heads, group = heads / seen.kv_heads, d = seen.d_k;
    for (int64_t i = 0; i < seen.tokens(); i++) {
        const int64_t row = seen.which[static_cast<size_t>(i)].row, t = row < 0 ? -1 : observer(row);
        const auto sees = [&](int64_t head) { return seen.sees_run[static_cast<size_t>(head * seen.tokens() + i)] != 0; };
        if (t < 0) continue;
        bool all = true;
        for (int64_t head = 0; head < heads; head++) all = all && sees(head);
        if (!all) {
            if (!told_.exchange(true)) {
                ALLOY_WARN("KV cache: GGML_ALLOY_KV_EVICT: cache_k_l%d and others keep all cells, some of which are hidden from tokens that follow: "
                           "a sliding window, or several sequences", keys.name().layer);
            }
            continue;
        }
        observations & kept = l.waiting[observed_run(row)];
        kept.q.resize(static_cast<size_t>(heads * num_tokens * d));
        kept.log_sum.resize(static_cast<size_t>(heads * num_tokens));
        for (int64_t head = 0; head < heads; head++) {
            const int64_t from = head * seen.tokens() + i, to = head * num_tokens + t;
            std::copy_n(seen.q.data() + from * d, d, kept.q.data() + to * d);
            kept.log_sum[static_cast<size_t>(to)] = seen.log_sum[static_cast<size_t>(from)];
        }
        kept.seen |= uint32_t{1} << t;
    }
    for (auto at = l.waiting.begin(); at != l.waiting.end();) {
        const int64_t run = at->first;
        int64_t first = 0, num = 0;
        if (at->second.seen != all_tokens || !keys.find_sealed_run(run, first, num) || !values.find_sealed_run(run, first, num)) {
            ++at;
            continue;
        }
        weighed w{run, first, num, std::vector<float>(static_cast<size_t>(seen.kv_heads * num * cells)), {}};
        std::vector<float> q = std::move(at->second.q);
        if (keys.rotation() > 0) hadamard_in_place(q.data(), heads * num_tokens * d / keys.rotation(), keys.rotation());
        for (int64_t head = 0; head < seen.kv_heads; head++) {
            std::vector<float> k;
            for (int64_t b = 0; b < num; b++) {
                const std::vector<float> rows = keys.turned_rows(first + b, head);
                k.insert(k.end(), rows.begin(), rows.end());
            }
            for (int64_t h = head * group; h < (head + 1) * group; h++) {
                add_metric(q.data() + h * num_tokens * d, at->second.log_sum.data() + h * num_tokens, k, d, seen.scale, num * cells,
                           w.metric.data() + head * num * cells);
            }
        }
        l.ready.push_back(std::move(w));
        at = l.waiting.erase(at);
    }
    while (l.waiting.size() > most_waiting_runs) l.waiting.erase(l.waiting.begin());
}

void eviction::choose() {
    std::vector<int64_t> runs;
    for (const layer & l : layers_) {
        for (const weighed & w : l.ready) runs.push_back(w.run);
    }
    std::sort(runs.begin(), runs.end());
    runs.erase(std::unique(runs.begin(), runs.end()), runs.end());
    for (const int64_t run : runs) choose(run);
}

// The cheapest page of all heads goes, and again, until few enough bytes are left. A page costs as much as the dearest of its cells.
void eviction::choose(int64_t run) {
    struct page {
        float cost;
        weighed * of;
        std::vector<float> * ascending; // metric of the head's cells
        int64_t head;
        double bytes;
        bool operator<(const page & other) const { return cost > other.cost; }
    };
    std::priority_queue<page> cheapest;
    std::deque<std::vector<float>> sorted;
    const auto offer = [&](page p, int64_t gone) {
        if (gone + 1 >= p.of->num_blocks) return; // one page stays
        p.cost = (*p.ascending)[static_cast<size_t>((gone + 1) * cells - 1)];
        cheapest.push(p);
    };
    double left = 0;
    for (layer & l : layers_) {
        for (weighed & w : l.ready) {
            if (w.run != run) continue;
            const int64_t heads = l.keys->heads(), n = w.num_blocks * cells;
            w.pages.assign(static_cast<size_t>(heads), w.num_blocks);
            for (int64_t head = 0; head < heads; head++) {
                const double bytes = static_cast<double>(l.keys->page_bytes(w.first_block, head) + l.values->page_bytes(w.first_block, head));
                left += bytes * static_cast<double>(w.num_blocks);
                if (!l.keys->may_pack(w.first_block, w.num_blocks, head) || !l.values->may_pack(w.first_block, w.num_blocks, head)) continue;
                sorted.emplace_back(w.metric.begin() + head * n, w.metric.begin() + (head + 1) * n);
                std::sort(sorted.back().begin(), sorted.back().end());
                offer({0, &w, &sorted.back(), head, bytes}, 0);
            }
        }
    }
    const double wanted = keep_ * left;
    while (left > wanted && !cheapest.empty()) {
        const page p = cheapest.top();
        cheapest.pop();
        int64_t & pages = p.of->pages[static_cast<size_t>(p.head)];
        pages--;
        left -= p.bytes;
        offer(p, p.of->num_blocks - pages);
    }
}

void eviction::evict(const cache_tensor & keys) {
    const auto of = std::find_if(layers_.begin(), layers_.end(), [&](const layer & l) { return l.keys == &keys; });
    if (of == layers_.end()) return;
    for (const weighed & w : of->ready) {
        const int64_t heads = of->keys->heads(), n = w.num_blocks * cells;
        std::vector<packed_head> packed(static_cast<size_t>(heads));
        for (int64_t head = 0; head < heads; head++) {
            packed_head & to = packed[static_cast<size_t>(head)];
            std::vector<int64_t> order(static_cast<size_t>(n)); // the dearest first, of equal ones the latest
            std::iota(order.rbegin(), order.rend(), 0);
            const float * metric = w.metric.data() + head * n;
            std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return metric[a] > metric[b]; });
            order.resize(static_cast<size_t>(w.pages[static_cast<size_t>(head)] * cells));
            to.least = order.back();
            for (const int64_t c : order) to.cells.kept[c / cells] |= uint64_t{1} << c % cells;
        }
        of->values->pack(w.first_block, w.num_blocks, packed);
        of->keys->pack(w.first_block, w.num_blocks, std::move(packed));
    }
    of->ready.clear();
}

} // namespace alloy::kv
