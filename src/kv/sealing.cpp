// Blocks of rows become pages of a codec, and rows again.
#include "kv/kv.h"

#include "base/counters.h"
#include "base/os.h"
#include "host/symbols.h"
#include "kernels/codec/codec.h"
#include "kernels/rowwise/rowwise.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>

namespace alloy::kv {
namespace {

size_t page_bytes_of(const attention_page & page, int64_t d) {
    return static_cast<size_t>(attention_block * (cell_row_bytes(page.cells->type, d) + 2));
}

} // namespace

size_t cache_tensor::page_bytes(int64_t block, int64_t head) const { return page_bytes_of(page(block, head), d_); }

attention_page & cache_tensor::page(int64_t block, int64_t head) {
    const int64_t stream = stream_of(block);
    return pages_[static_cast<size_t>((stream * heads_ + head) * blocks_a_stream_ + block % blocks_a_stream_)];
}

void cache_tensor::show_rows(int64_t block) {
    const size_t head_bytes = row_bytes_ / static_cast<size_t>(heads_);
    for (int64_t head = 0; head < heads_; head++) page(block, head) = {rows_of(block) + static_cast<size_t>(head) * head_bytes, rows_};
}

void cache_tensor::show_sealed(int64_t block, const std::vector<attention_page> & sealed) {
    size_t taken = 0;
    for (int64_t head = 0; head < heads_; head++) {
        page(block, head) = sealed[static_cast<size_t>(head)];
        taken += page_bytes_of(sealed[static_cast<size_t>(head)], d_);
    }
    blocks_[static_cast<size_t>(block)].sealed = true;
    count(counter::kv_sealed_bytes, taken);
    count(counter::kv_saved_bytes, block_bytes() - taken);
    uncount(counter::kv_live_bytes, block_bytes() - taken);
}

void cache_tensor::give_back(const std::vector<attention_page> & sealed) {
    for (const attention_page & p : sealed) arena_.give_back(const_cast<uint8_t *>(p.data), page_bytes_of(p, d_));
}

std::vector<float> cache_tensor::rows_as_they_lie(int64_t block, int64_t head) const {
    std::vector<float> rows(static_cast<size_t>(block_cells * d_));
    if (const auto * run = run_of(block)) {
        unpack_rows((*run)[static_cast<size_t>(head)], block, head, rows.data());
    } else {
        const attention_page & from = page(block, head);
        const int64_t stride = is_coded(from.cells->type) ? cell_row_bytes(from.cells->type, d_) : static_cast<int64_t>(row_bytes_);
        from.cells->expand(from.data, stride, block_cells, d_, rows.data());
    }
    const auto & from = blocks_[static_cast<size_t>(block)];
    if (from.sealed && from.means != nullptr) from.means->add(head, 1, rows);
    return rows;
}

std::vector<float> cache_tensor::turned_rows(int64_t block, int64_t head) const {
    std::vector<float> rows = rows_as_they_lie(block, head);
    const bool sealed = is_sealed(block);
    if (!sealed) balance_.multiply(head, rows);
    if (rotation_ > 0) hadamard_in_place(rows.data(), block_cells * d_ / rotation_, rotation_);
    if (sealed) balance_.divide(head, rows);
    return rows;
}

std::vector<float> cache_tensor::rows_as_sealed(int64_t block, int64_t head) const {
    return is_sealed(block) ? rows_as_they_lie(block, head) : turned_rows(block, head);
}

std::vector<float> error_of(const std::vector<float> & rows, kv_codec codec, int64_t d) {
    std::vector<uint8_t> page(static_cast<size_t>(kv_codec_page_bytes(codec, d)));
    std::vector<float> back(rows.size());
    if (!find_encode(codec)({rows.data(), d * static_cast<int64_t>(sizeof(float)), d, page.data()})) return {};
    find_attention(cell_type_of_codec(codec))->expand(page.data(), kv_codec_row_bytes(codec, d), attention_block, d, back.data());
    for (size_t i = 0; i < rows.size(); i++) back[i] -= rows[i];
    return back;
}

double energy(const std::vector<float> & x) {
    double sum = 0;
    for (const float v : x) sum += static_cast<double>(v) * v;
    return sum;
}

key_means::key_means(std::vector<float> means, int64_t row) : values(std::move(means)), d(row) { count(counter::kv_live_bytes, values.size() * sizeof(float)); }
void key_means::add(int64_t head, float times, std::vector<float> & rows) const {
    for (float * row = rows.data(); row < rows.data() + rows.size(); row += d) {
        for (int64_t i = 0; i < d; i++) row[i] += times * of(head)[i];
    }
}

key_means::~key_means() { uncount(counter::kv_live_bytes, values.size() * sizeof(float)); }

// Keys of a head have much in common, which no query can tell apart: softmax does not change when all logits move alike. What is left without it
// needs smaller steps. Rows that are sealed again find their codes where they find their means: a block's stay when it is opened, and of rows that
// were saved and restored, in whatever cells, the codec's loss tells which means they lacked.
std::shared_ptr<const key_means> cache_tensor::means_for(int64_t block) const {
    const auto & here = blocks_[static_cast<size_t>(block)];
    if (here.means != nullptr && (!here.restored || here.opened || here.sealed)) return here.means;
    const auto first = blocks_.begin() + block / mean_blocks * mean_blocks, end = std::min(first + mean_blocks, blocks_.end());
    const auto known = std::find_if(first, end, [](const struct block & b) { return b.means != nullptr; });
    std::shared_ptr<const key_means> best = here.means != nullptr ? here.means : known != end ? known->means : means_of_rows(block);
    if (!here.restored) return best;
    const std::vector<float> rows = turned_rows(block, 0);
    double least = loss_with(*best, rows);
    for (const auto & means : last_means_) {
        const double loss = loss_with(*means, rows);
        if (loss < least) best = means, least = loss;
    }
    return best;
}

std::shared_ptr<const key_means> cache_tensor::means_of_rows(int64_t block) const {
    std::vector<float> means(static_cast<size_t>(heads_ * d_));
    for (int64_t head = 0; head < heads_; head++) {
        const std::vector<float> rows = turned_rows(block, head);
        float * mean = means.data() + head * d_;
        for (const float * row = rows.data(); row < rows.data() + rows.size(); row += d_) {
            for (int64_t i = 0; i < d_; i++) mean[i] += row[i] / block_cells;
        }
    }
    return std::make_shared<const key_means>(std::move(means), d_);
}

double cache_tensor::loss_with(const key_means & means, std::vector<float> rows) const {
    means.add(0, -1, rows);
    const std::vector<float> lost = error_of(rows, codecs_[0], d_);
    return lost.empty() ? std::numeric_limits<double>::infinity() : energy(lost);
}

void cache_tensor::remember(const std::shared_ptr<const key_means> & means) {
    const auto known = std::find(last_means_.begin(), last_means_.end(), means);
    if (known != last_means_.end()) last_means_.erase(known);
    if (last_means_.size() == most_last_means) last_means_.erase(last_means_.begin());
    last_means_.push_back(means);
}

// One page a head. False: a row is not finite. Throws std::bad_alloc.
bool cache_tensor::encode_block(int64_t block, const key_means * means, std::vector<attention_page> & sealed) const {
    sealed.reserve(static_cast<size_t>(heads_));
    for (int64_t head = 0; head < heads_; head++) {
        const kv_codec codec = codecs_[static_cast<size_t>(head)];
        std::vector<float> rows = turned_rows(block, head);
        if (means != nullptr) means->add(head, -1, rows);
        uint8_t * to = arena_.take(static_cast<size_t>(kv_codec_page_bytes(codec, d_)));
        if (to == nullptr) throw std::bad_alloc();
        sealed.push_back({to, find_attention(cell_type_of_codec(codec)), nullptr, means != nullptr ? means->of(head) : nullptr});
        if (!find_encode(codec)({rows.data(), d_ * static_cast<int64_t>(sizeof(float)), d_, to})) return false;
    }
    return true;
}

// False: nothing is changed. Rows that are not finite are stuck until they are written again; where memory is short, the block is tried again
// when as many rows were written as are recent.
bool cache_tensor::seal_block(int64_t block) {
    auto & here = blocks_[static_cast<size_t>(block)];
    std::vector<attention_page> sealed;
    std::shared_ptr<const key_means> means = here.means;
    bool done = false;
    try {
        if (!name_.is_value && (means = means_for(block)) != here.means) remember(means);
        done = encode_block(block, means.get(), sealed);
        here.stuck = !done;
    } catch (const std::bad_alloc &) {
        here.retry = streams_[static_cast<size_t>(stream_of(block))].rows + static_cast<uint64_t>(policy_.window);
    }
    if (!done) {
        give_back(sealed);
        count(counter::kv_unsealable_blocks);
        return false;
    }
    here.means = std::move(means);
    here.decoded = ~uint64_t{0};
    show_sealed(block, sealed);
    drop_rows(block);
    count(counter::kv_sealed_pages, sealed.size());
    return true;
}

void cache_tensor::decode_block(int64_t block, uint8_t * rows) const {
    const size_t head_bytes = row_bytes_ / static_cast<size_t>(heads_);
    for (int64_t head = 0; head < heads_; head++) {
        const std::vector<float> values = turned_rows(block, head);
        for (int64_t cell = 0; cell < block_cells; cell++) {
            uint8_t * to = rows + static_cast<size_t>(cell) * row_bytes_ + static_cast<size_t>(head) * head_bytes;
            host::api().ggml_quantize_chunk(type_, values.data() + cell * d_, to, 0, 1, d_, nullptr);
        }
    }
}

void cache_tensor::open_block(int64_t block) {
    if (is_packed(block)) return unpack(block);
    decode_block(block, rows_of(block));
    show_opened(block);
}

void cache_tensor::show_opened(int64_t block) {
    free_pages(block);
    count(counter::kv_live_bytes, block_bytes());
    count(counter::kv_opened_pages, static_cast<uint64_t>(heads_));
    if (!blocks_[static_cast<size_t>(block)].opened) list(block);
}

// The pages of a sealed block go back to the arena, and the table shows its rows again.
void cache_tensor::free_pages(int64_t block) {
    std::vector<attention_page> sealed;
    size_t taken = 0;
    for (int64_t head = 0; head < heads_; head++) {
        if (page(block, head).data == nullptr) continue; // of a packed run
        sealed.push_back(page(block, head));
        taken += page_bytes_of(sealed.back(), d_);
    }
    give_back(sealed);
    show_rows(block);
    blocks_[static_cast<size_t>(block)].sealed = false;
    uncount(counter::kv_live_bytes, taken);
    uncount(counter::kv_sealed_bytes, taken);
    uncount(counter::kv_saved_bytes, block_bytes() - taken);
}

// False: memory is short.
bool cache_tensor::copy_pages(const cache_tensor & source, int64_t from, int64_t to) {
    std::vector<attention_page> copies;
    for (int64_t head = 0; head < heads_; head++) {
        const attention_page & p = source.page(from, head);
        const size_t bytes = page_bytes_of(p, d_);
        uint8_t * copy = arena_.take(bytes);
        if (copy == nullptr) {
            give_back(copies);
            return false;
        }
        std::memcpy(copy, p.data, bytes);
        copies.push_back({copy, p.cells, nullptr, p.mean});
    }
    auto & copied = blocks_[static_cast<size_t>(to)];
    copied.means = source.blocks_[static_cast<size_t>(from)].means;
    copied.decoded = ~uint64_t{0};
    show_sealed(to, copies);
    return true;
}

// The block holds nothing any more.
void cache_tensor::drop_block(int64_t block) {
    if (is_packed(block)) unpack(block);
    auto & b = blocks_[static_cast<size_t>(block)];
    if (b.sealed) {
        free_pages(block);
    } else if (b.written != 0) {
        uncount(counter::kv_live_bytes, block_bytes());
    }
    const bool had_rows = b.written != 0;
    const bool listed = b.listed; // open_ is cleaned when blocks are sealed
    b = {};
    b.listed = listed;
    if (had_rows) drop_rows(block);
}

// Memory pages go back that hold no rows but those of this block.
void cache_tensor::drop_rows(int64_t block) {
    const auto begin = reinterpret_cast<uintptr_t>(rows_of(block)), end = begin + block_bytes();
    const uintptr_t page = os::page_bytes();
    const auto others_hold_rows = [&](uintptr_t from, uintptr_t to) { // blocks smaller than a page of memory have several neighbours in it
        from = std::max(from, address_), to = std::min(to, address_ + bytes_);
        for (auto b = static_cast<int64_t>((from - address_) / block_bytes()); from < to && b <= static_cast<int64_t>((to - 1 - address_) / block_bytes()); b++) {
            if (b != block && holds_rows(b)) return true;
        }
        return false;
    };
    uintptr_t first = begin / page * page, last = (end + page - 1) / page * page;
    if (first < begin && others_hold_rows(first, begin)) first += page;
    if (last > end && others_hold_rows(end, last)) last -= page;
    first = std::max(first, (address_ + page - 1) / page * page); // neighbours of the tensor
    last = std::min(last, (address_ + bytes_) / page * page);
    if (first < last) os::drop_pages(reinterpret_cast<void *>(first), last - first);
}

// Calls f(number, block) for a thread's blocks. Blocks that share pages of memory with their neighbours are all one thread's.
template <class F> void cache_tensor::each_block_of(int thread, int num_threads, F f) {
    const int threads = block_bytes() % os::page_bytes() == 0 ? num_threads : 1;
    for (auto b = static_cast<size_t>(thread); thread < threads && b < blocks_.size(); b += static_cast<size_t>(threads)) f(static_cast<int64_t>(b), blocks_[b]);
}

void cache_tensor::open_share(int thread, int num_threads) {
    if (d_ == 0 || plain_) return;
    any_opened_.store(true, std::memory_order_relaxed);
    each_block_of(thread, num_threads, [&](int64_t i, block & b) {
        if (!b.sealed) return;
        b.opened = true;
        open_block(i);
    });
}

void cache_tensor::seal_share(int thread, int num_threads) {
    if (plain_) return;
    each_block_of(thread, num_threads, [&](int64_t i, block & b) {
        if (b.opened) b.opened = !b.sealed && !seal_block(i); // sealed: it could not be opened
    });
}

// Blocks that were opened and, because a graph was aborted, not sealed again.
void cache_tensor::list_opened() {
    if (!any_opened_.exchange(false, std::memory_order_relaxed)) return;
    for (size_t b = 0; b < blocks_.size(); b++) {
        if (!blocks_[b].opened) continue;
        blocks_[b].opened = false;
        list(static_cast<int64_t>(b));
    }
}

} // namespace alloy::kv
