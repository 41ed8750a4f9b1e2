#include "kv/eviction.h"

#include "base/log.h"
#include "kernels/rowwise/rowwise.h"
#include "kv/kv.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>

namespace alloy::kv {
namespace {

constexpr int64_t cells = attention_block, run_blocks = attention_packing::max_blocks, run_cells = run_blocks * cells;
constexpr int64_t observing_blocks = 2, num_observers = observing_blocks * cells;
constexpr int64_t pooled = 3;           // neighbours on each side
constexpr float worth_of_neighbours = 0.01f;
constexpr size_t most_waiting_runs = 4; // of a layer: what is never sealed does not wait for ever

// Runs are counted from the start of the cache; each is observed by what is written right after it.
bool is_observer(int64_t row) { return row >= run_cells && row % run_cells < num_observers; }
int64_t observed_run(int64_t row) { return row / run_cells - 1; }

} // namespace

void eviction::refuse(const char * why) {
    if (!on()) return;
    refused_ = true;
    ALLOY_WARN("KV cache: GGML_ALLOY_KV_EVICT: no further cell is evicted: %s", why);
}

std::vector<sampled_token> eviction::observers(const std::vector<int64_t> & rows, int64_t stream_begin) {
    std::vector<sampled_token> found;
    for (size_t i = 0; i < rows.size(); i++) {
        const int64_t begin = observed_run(rows[i]) * run_cells - stream_begin;
        if (is_observer(rows[i]) && begin >= 0) found.push_back({static_cast<int64_t>(i), rows[i], begin, begin + run_cells});
    }
    return found;
}

eviction::layer * eviction::find(const cache_tensor & keys) {
    const auto found = std::find_if(layers_.begin(), layers_.end(), [&](const layer & l) { return l.keys == &keys; });
    return found != layers_.end() ? &*found : nullptr;
}

eviction::layer & eviction::of(cache_tensor & keys, cache_tensor & values) {
    std::lock_guard guard(lock_);
    if (layer * found = find(keys)) return *found;
    layers_.push_back({&keys, &values, {}, {}});
    return layers_.back();
}

void eviction::expect(const cache_tensor & keys, const std::vector<block_write> & writes) {
    layer * of = find(keys);
    if (of == nullptr) return;
    for (const block_write & w : writes) {
        const int64_t row = w.block * cells;
        of->waiting.erase(row / run_cells);
        const auto waiting = is_observer(row) ? of->waiting.find(observed_run(row)) : of->waiting.end();
        if (waiting != of->waiting.end() && (waiting->second.seen[row % run_cells / cells] & w.cells) != 0) of->waiting.erase(waiting);
    }
}

void eviction::forget() {
    for (layer & l : layers_) {
        l.waiting.clear();
        l.ready.clear();
    }
}

// squares[head][cell of the run] += p^2 of the tokens `which` of the sample.
void eviction::add_squares(const cache_tensor & keys, attention_sample & seen, int64_t run, const std::vector<int64_t> & which, std::vector<float> & squares) {
    const int64_t group = seen.heads / seen.kv_heads, tokens = static_cast<int64_t>(which.size());
    const int64_t stream = run * run_blocks * cells / keys.rows_a_stream(), first = run * run_blocks - stream * keys.rows_a_stream() / cells;
    attention_row rows[attention_tile];
    alignas(64) float p[attention_tile * cells];
    attention_args args{};
    args.tiles = keys.tiles();
    args.num_cells = keys.rows_a_stream();
    args.rows = rows;
    args.scale = seen.scale;
    args.v.d = 16; // not read
    args.sealed_k = keys.rotation();
    args.rotate = hadamard_in_place;
    const attention_state_shape largest{attention_tile, seen.d_k, args.v.d, true, false};
    std::vector<float> memory(static_cast<size_t>(attention_state_floats(largest)) + 16);
    float * aligned = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64 / sizeof(float);
    for (int64_t head = 0; head < seen.heads; head++) {
        args.k = keys.pages_of(stream, head / group);
        args.balance = keys.balance().of(head / group);
        for (int64_t begin = 0; begin < tokens; begin += attention_tile) {
            args.num_rows = std::min(attention_tile, tokens - begin);
            for (int64_t r = 0; r < args.num_rows; r++) {
                static constexpr uint8_t all_visible[run_blocks] = {};
                const int64_t at = head * seen.tokens() + which[static_cast<size_t>(begin + r)];
                rows[r] = {seen.q.data() + at * seen.d_k, nullptr, nullptr, all_visible, 1, -INFINITY, seen.log_sum.data() + at};
            }
            const attention_state state = attention_state_at(aligned, state_shape_of(args));
            attention_begin(args, state);
            for (int64_t b = 0; b < run_blocks; b++) {
                attention_probabilities(args, state, first + b, p);
                float * sums = squares.data() + (head * run_blocks + b) * cells;
                for (int64_t i = 0; i < args.num_rows * cells; i++) sums[i % cells] += p[i] * p[i];
            }
        }
    }
}

void eviction::observe(layer & l, attention_sample & seen) {
    std::map<int64_t, std::vector<int64_t>> of_runs; // tokens of the sample
    for (int64_t i = 0; i < seen.tokens(); i++) {
        const int64_t row = seen.which[static_cast<size_t>(i)].row;
        if (row < 0 || l.keys->is_packed(observed_run(row) * run_blocks + run_blocks - 1)) continue;
        bool sees_all = true;
        for (int64_t head = 0; head < seen.heads; head++) sees_all = sees_all && seen.sees_run[static_cast<size_t>(head * seen.tokens() + i)] != 0;
        if (sees_all) {
            of_runs[observed_run(row)].push_back(i);
        } else if (!told_.exchange(true)) {
            ALLOY_WARN("KV cache: GGML_ALLOY_KV_EVICT: cache_k_l%d and others keep all cells, some of which are hidden from tokens that follow: "
                       "a sliding window, or several sequences", l.keys->name().layer);
        }
    }
    for (const auto & [run, tokens] : of_runs) {
        observations & o = l.waiting[run];
        for (const int64_t i : tokens) {
            const int64_t row = seen.which[static_cast<size_t>(i)].row % run_cells;
            o.seen[row / cells] |= uint64_t{1} << row % cells;
        }
        o.squares.resize(static_cast<size_t>(seen.heads * run_cells));
        add_squares(*l.keys, seen, run, tokens, o.squares);
    }
    while (l.waiting.size() > most_waiting_runs) l.waiting.erase(l.waiting.begin());
}

void eviction::weigh(cache_tensor & keys, cache_tensor & values, attention_sample & seen) {
    layer & l = of(keys, values);
    observe(l, seen);
    for (auto at = l.waiting.begin(); at != l.waiting.end();) {
        const observations & o = at->second;
        int64_t first = 0, num = 0;
        const bool complete = std::all_of(std::begin(o.seen), std::end(o.seen), [](uint64_t tokens) { return tokens == ~uint64_t{0}; });
        if (!complete || !keys.find_sealed_run(at->first, first, num) || !values.find_sealed_run(at->first, first, num)) {
            ++at;
            continue;
        }
        const int64_t n = num * cells, group = seen.heads / seen.kv_heads;
        weighed w{at->first, first, num, std::vector<float>(static_cast<size_t>(seen.kv_heads * n)), {}};
        for (int64_t head = 0; head < seen.heads; head++) { // each cell is worth something for its neighbours, heads of a group are added
            const float * squares = o.squares.data() + (head + 1) * run_cells - n;
            float * metric = w.metric.data() + head / group * n;
            for (int64_t c = 0; c < n; c++) {
                const float most = *std::max_element(squares + std::max<int64_t>(0, c - pooled), squares + std::min(n, c + pooled + 1));
                metric[c] += std::max(squares[c], worth_of_neighbours * most);
            }
        }
        l.ready.push_back(std::move(w));
        at = l.waiting.erase(at);
    }
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
    layer * of = find(keys);
    if (of == nullptr) return;
    const std::vector<weighed> ready = std::move(of->ready);
    of->ready.clear();
    for (const weighed & w : ready) {
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
        packed_runs of_values{{w.first_block, packed}}, of_keys{{w.first_block, std::move(packed)}};
        of->values->pack(w.num_blocks, of_values); // nothing fails from here on
        of->keys->pack(w.num_blocks, of_keys);
    }
}

} // namespace alloy::kv
