#include "graph/cache_use.h"

#include <algorithm>

namespace alloy::graph {
namespace {

constexpr size_t most_blocks_measured = 4; // of each layer in one graph

// Positions of consecutive tokens of one sequence follow one another.
int64_t count_sequences(const host::tensor * positions, int64_t tokens) {
    if (positions == nullptr || positions->ne[0] < tokens) return 1;
    const auto * p = static_cast<const int32_t *>(positions->data);
    int64_t sequences = 1;
    for (int64_t i = 1; i < tokens; i++) sequences += p[i] != p[i - 1] + 1;
    return sequences;
}

std::vector<int64_t> cells_of(const cache_write & w) {
    const auto * index = static_cast<const int64_t *>(w.indices->data);
    std::vector<int64_t> cells(index, index + w.indices->ne[0]);
    for (int64_t & cell : cells) cell += w.first_row;
    return cells;
}

std::vector<kv::block_write> blocks_of(const std::vector<int64_t> & rows) {
    constexpr int64_t cells = attention_block;
    std::vector<kv::block_write> blocks;
    for (const int64_t row : rows) {
        const int64_t block = row / cells;
        if (blocks.empty() || blocks.back().block != block) {
            const auto seen = std::find_if(blocks.begin(), blocks.end(), [&](const kv::block_write & w) { return w.block == block; });
            if (seen != blocks.end()) std::iter_swap(seen, std::prev(blocks.end()));
            else blocks.push_back({block, 0});
        }
        blocks.back().cells |= uint64_t{1} << row % cells;
    }
    return blocks;
}

// The tokens that observe the cells of a cache, of one sequence in one stream, whose tokens are all written.
std::vector<kv::sampled_token> observers(const cache_write & w) {
    const std::vector<int64_t> rows = cells_of(w);
    return kv::eviction::observers(rows, rows[0] / w.cache->rows_a_stream() * w.cache->rows_a_stream());
}

} // namespace

bool cache_use::may_seal() const {
    return std::any_of(reads.begin(), reads.end(), [](const cache_read & r) { return !r.cache->is_plain(); });
}

void cache_use::prepare() {
    // All layers write the same cells.
    const cache_write * last = nullptr;
    std::vector<int64_t> cells;
    std::vector<kv::block_write> blocks;
    int64_t streams = 1;
    for (const cache_read & r : reads) {
        streams = std::max(streams, r.num_streams);
        for (int64_t s = 0; s < r.num_streams && r.cells >= 0; s++) r.cache->trim(r.first_stream + s, r.cells);
    }
    for (kv::cache_tensor * cache : opened) cache->unpack_all();
    for (const cache_write & w : writes) {
        if (last == nullptr || last->indices != w.indices || last->first_row != w.first_row) {
            cells = cells_of(w);
            blocks = blocks_of(cells);
        }
        last = &w;
        w.cache->expect(blocks);
        if (w.cache->exact().is_led_by(w.cache)) {
            const auto rows = static_cast<int64_t>(cells.size());
            const bool known = positions != nullptr && positions->ne[0] >= rows;
            // Tokens of images have several positions, of which the first says nothing of their order.
            w.cache->exact().write(cells, known ? static_cast<const int32_t *>(positions->data) : nullptr, known && positions->ne[0] == rows);
        }
        if (!w.cache->name().is_value) w.cache->evicted().expect(*w.cache, blocks);
    }
    const int64_t sequences = writes.empty() ? 1 : count_sequences(positions, writes.front().indices->ne[0]);
    to_seal_.clear();
    for (const cache_read & r : reads) { // layers may share a cache; one thread seals it
        const bool listed = std::find(to_seal_.begin(), to_seal_.end(), r.cache) != to_seal_.end();
        if (!listed && r.cache->has_sealable()) to_seal_.push_back(r.cache);
    }
    if (sequences > streams) {
        for (const auto & layer : sampled) {
            layer->keys->evicted().refuse("several sequences share one cache (llama-server: -np 1, or streams of their own: --no-kv-unified)");
        }
    }
    choose_samples(sequences == 1 && streams == 1);
}

// Rows of several sequences in one cache see different cells: masks would have to be looked up.
void cache_use::choose_samples(bool one_sequence) {
    sampling_ = one_sequence && !to_seal_.empty() && !sampled.empty() && sampled.front()->keys->rates().sample_next();
    const cache_write * last = nullptr; // most layers write the same cells
    std::vector<kv::sampled_token> observing;
    for (const auto & layer : sampled) {
        kv::attention_sample & sample = layer->sample;
        const auto w = std::find_if(writes.begin(), writes.end(), [&](const cache_write & x) { return x.cache == layer->keys; });
        const bool observed = one_sequence && layer->keys->evicted().on() && w != writes.end() && w->indices->ne[0] == layer->tokens;
        if (observed && (last == nullptr || last->indices != w->indices || last->first_row != w->first_row)) observing = observers(*w);
        if (observed) last = &*w;
        sample.which = observed ? observing : std::vector<kv::sampled_token>();
        for (int64_t i = std::max<int64_t>(0, layer->tokens - kv::attention_sample::max_last_tokens); sampling_ && i < layer->tokens; i++) {
            if (!sample.has(i)) sample.which.insert(sample.which.begin() + sample.place_of(i), {i});
        }
        sample.resize();
    }
}

// Calls f(keys of one sampled layer) for each store: sliding windows have one of their own.
template <class F> void cache_use::each_store(F f) const {
    std::vector<const kv::eviction *> seen;
    for (const auto & layer : sampled) {
        const kv::eviction * store = &layer->keys->evicted();
        if (std::find(seen.begin(), seen.end(), store) != seen.end()) continue;
        seen.push_back(store);
        f(*layer->keys);
    }
}

void cache_use::measure(int num_threads) const {
    if (!sampling_) return;
    for (int64_t i; (i = measuring_.take(static_cast<int64_t>(sampled.size()), num_threads)) >= 0;) {
        const sampled_layer & layer = *sampled[static_cast<size_t>(i)];
        const std::vector<int64_t> blocks = layer.keys->sealable(most_blocks_measured);
        if (blocks != layer.values->sealable(most_blocks_measured)) continue;
        const auto read = std::find_if(reads.begin(), reads.end(), [&](const cache_read & r) { return r.cache == layer.keys; });
        const int64_t first_block = read->first_stream * layer.keys->rows_a_stream() / attention_block;
        layer.keys->rates().measure(*layer.keys, *layer.values, blocks, first_block, layer.sample);
    }
}

void cache_use::assign() const {
    if (sampling_) each_store([](const kv::cache_tensor & keys) { keys.rates().assign(); });
}

void cache_use::seal(int num_threads) const {
    for (int64_t i; (i = sealing_.take(static_cast<int64_t>(to_seal_.size()), num_threads)) >= 0;) to_seal_[static_cast<size_t>(i)]->seal();
}

void cache_use::weigh_cells(int num_threads) const {
    for (int64_t i; (i = weighing_.take(static_cast<int64_t>(sampled.size()), num_threads)) >= 0;) {
        sampled_layer & layer = *sampled[static_cast<size_t>(i)];
        layer.keys->evicted().weigh(*layer.keys, *layer.values, layer.sample);
        layer.sample.release();
    }
}

void cache_use::choose_cells() const {
    each_store([](const kv::cache_tensor & keys) { keys.evicted().choose(); });
}

void cache_use::evict(int num_threads) const {
    for (int64_t i; (i = evicting_.take(static_cast<int64_t>(sampled.size()), num_threads)) >= 0;) {
        const sampled_layer & layer = *sampled[static_cast<size_t>(i)];
        layer.keys->evicted().evict(*layer.keys);
    }
}

} // namespace alloy::graph
