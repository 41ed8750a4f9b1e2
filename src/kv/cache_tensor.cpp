// What the host and the graphs do to a cache tensor, block by block.
#include "kv/kv.h"

#include "base/counters.h"
#include "base/log.h"
#include "base/os.h"
#include "host/symbols.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>

namespace alloy::kv {
namespace {

uint64_t hash_of(const char * row, size_t bytes) { return std::hash<std::string_view>{}({row, bytes}); }

uint64_t bits(int64_t first, int64_t count) { return count >= 64 ? ~uint64_t{0} : ((uint64_t{1} << count) - 1) << first; }

} // namespace

cache_tensor::cache_tensor(const host::tensor & declared, void * address, size_t bytes, const policy & wanted, page_arena & arena, head_rates & rates,
                           eviction & evicted, exact_cells & exact)
    : type_(declared.type), address_(reinterpret_cast<uintptr_t>(address)), bytes_(bytes), row_bytes_(declared.nb[1]),
      num_rows_(declared.ne[1] * declared.ne[2] * declared.ne[3]), blocks_a_stream_((declared.ne[1] + block_cells - 1) / block_cells), policy_(wanted),
      arena_(arena), rates_(rates), evicted_(evicted), exact_(exact) {
    parse_cache_name(declared.name, name_);
    whole_blocks_ = declared.ne[1] % block_cells == 0 && row_bytes_ * static_cast<size_t>(num_rows_) == bytes;
    plain_ = !wanted.lossy || name_.is_side_cache || !whole_blocks_;
    streams_.resize(static_cast<size_t>(declared.ne[2] * declared.ne[3]));
    blocks_.resize(static_cast<size_t>(blocks_a_stream_) * streams_.size());
    if (!plain_) exact_.cover(this, num_rows_, num_streams());
}

// Rows go with the buffer.
cache_tensor::~cache_tensor() {
    for (int64_t head = 0; head < heads_; head++) show_codec(head, 0);
    forget_balance();
    for (size_t b = 0; b < blocks_.size(); b++) {
        if (blocks_[b].sealed) free_pages(static_cast<int64_t>(b));
        else if (blocks_[b].written != 0) uncount(counter::kv_live_bytes, block_bytes());
    }
}

template <class F> void cache_tensor::each_block(size_t offset, size_t bytes, F f) const {
    const size_t end = offset + bytes;
    for (size_t at = offset; at < end;) {
        const auto row = static_cast<int64_t>(at / row_bytes_), last = static_cast<int64_t>((end - 1) / row_bytes_);
        // Streams start at whole blocks only where cells are whole blocks; else everything is one plain stream of rows.
        const int64_t block = row / block_cells, first = row % block_cells, rows = std::min(last + 1 - row, block_cells - first);
        const size_t next = std::min(end, static_cast<size_t>(row + rows) * row_bytes_);
        f(block, first, rows, at, next - at);
        at = next;
    }
}

void cache_tensor::note_write(const block_write & w) {
    block & b = blocks_[static_cast<size_t>(w.block)];
    stream & s = streams_[static_cast<size_t>(stream_of(w.block))];
    if (b.written == 0) count(counter::kv_live_bytes, block_bytes());
    b.written |= w.cells;
    b.decoded &= ~w.cells;
    if (b.decoded == 0) b.means = nullptr;
    s.rows += static_cast<uint64_t>(std::popcount(w.cells));
    s.top = std::max(s.top, w.block % blocks_a_stream_ + 1);
    b.retry = 0;
    b.stuck = false;
    list(w.block);
}

void cache_tensor::list(int64_t block) {
    auto & b = blocks_[static_cast<size_t>(block)];
    if (b.listed || plain_) return;
    b.listed = true;
    open_.push_back(static_cast<int32_t>(block));
}

void cache_tensor::show_codec(int64_t head, int number) const {
    if (name_.layer < 0 || name_.layer >= kv_map_layers || head >= kv_map_heads) return;
    std::atomic<uint8_t> & shown = counters().kv_codecs[name_.layer][head];
    const int keys = name_.is_value ? shown.load() & 15 : number, values = name_.is_value ? number : shown.load() >> 4;
    shown.store(static_cast<uint8_t>(values << 4 | keys));
}

void cache_tensor::set_codec(int64_t head, kv_codec codec) {
    codecs_[static_cast<size_t>(head)] = codec;
    show_codec(head, static_cast<int>(codec) + 1);
}

void cache_tensor::make_writable(int64_t block, bool all_of_it) {
    if (is_packed(block)) unpack(block);
    if (!blocks_[static_cast<size_t>(block)].sealed) return;
    if (all_of_it) drop_block(block);
    else open_block(block);
}

void cache_tensor::expect(const std::vector<block_write> & writes) {
    list_opened();
    for (const block_write & w : writes) {
        make_writable(w.block, w.cells == ~uint64_t{0});
        note_write(w);
    }
}

void cache_tensor::write(const void * data, size_t offset, size_t bytes) {
    std::vector<uint64_t> hashes; // of whole rows
    const bool leads = exact_.is_led_by(this) && offset % row_bytes_ == 0;
    for (size_t at = 0; leads && at + row_bytes_ <= bytes; at += row_bytes_) hashes.push_back(hash_of(static_cast<const char *>(data) + at, row_bytes_));
    exact_.restore(this, static_cast<int64_t>(offset / row_bytes_), hashes);
    each_block(offset, bytes, [&](int64_t block, int64_t first, int64_t rows, size_t at, size_t size) {
        make_writable(block, size == block_bytes());
        std::memcpy(reinterpret_cast<void *>(address_ + at), static_cast<const uint8_t *>(data) + (at - offset), size);
        note_write({block, bits(first, rows)});
        blocks_[static_cast<size_t>(block)].restored = true;
        if (first + rows == block_cells && has_sealable()) seal(); // block by block: a long state needs no more than it takes in the end
    });
}

void cache_tensor::fill(uint8_t value, size_t offset, size_t bytes) {
    each_block(offset, bytes, [&](int64_t block, int64_t first, int64_t rows, size_t at, size_t size) {
        make_writable(block, size == block_bytes());
        std::memset(reinterpret_cast<void *>(address_ + at), value, size);
        note_write({block, bits(first, rows)});
    });
}

void cache_tensor::read(void * data, size_t offset, size_t bytes) const {
    // Whoever restores them takes every cell for a token's own.
    if (!plain_) evicted_.refuse("the host saves the cells of this cache (llama-server: --cache-ram 0 keeps it from that)");
    read_rows(data, offset, bytes);
    if (!exact_.is_led_by(this) || offset % row_bytes_ != 0) return;
    for (size_t at = 0; at + row_bytes_ <= bytes; at += row_bytes_) {
        const auto cell = static_cast<int64_t>((offset + at) / row_bytes_);
        if (exact_.has(cell)) exact_.save(cell, hash_of(static_cast<const char *>(data) + at, row_bytes_)); // few are
    }
}

void cache_tensor::read_rows(void * data, size_t offset, size_t bytes) const {
    std::vector<uint8_t> rows_of_block;
    each_block(offset, bytes, [&](int64_t block, int64_t, int64_t, size_t at, size_t size) {
        const auto * from = reinterpret_cast<const uint8_t *>(address_ + at);
        if (blocks_[static_cast<size_t>(block)].sealed) {
            rows_of_block.resize(block_bytes());
            decode_block(block, rows_of_block.data());
            from = rows_of_block.data() + (at - static_cast<size_t>(block) * block_bytes());
        }
        std::memcpy(static_cast<uint8_t *>(data) + (at - offset), from, size);
    });
}

void cache_tensor::clear() {
    runs_.clear();
    for (size_t b = 0; b < blocks_.size(); b++) {
        drop_block(static_cast<int64_t>(b));
        blocks_[b] = {};
    }
    for (stream & s : streams_) s = {};
    open_.clear();
    last_means_.clear();
    // The ragged ends are shared with neighbours, and cells may have been read that were never written.
    const uintptr_t page = os::page_bytes(), end = address_ + bytes_;
    const uintptr_t first = (address_ + page - 1) / page * page, last = end / page * page;
    if (first >= last || !os::drop_pages(reinterpret_cast<void *>(address_), bytes_)) {
        std::memset(reinterpret_cast<void *>(address_), 0, bytes_);
        return;
    }
    std::memset(reinterpret_cast<void *>(address_), 0, first - address_);
    std::memset(reinterpret_cast<void *>(last), 0, end - last);
}

bool cache_tensor::copy_from(const cache_tensor & source, size_t source_offset, size_t offset, size_t bytes) {
    if (source.type_ != type_ || source.row_bytes_ != row_bytes_) return false;
    const bool whole = source_offset % block_bytes() == 0 && offset % block_bytes() == 0 && bytes % block_bytes() == 0;
    const bool same_heads = source.d_ == d_ && source.heads_ == heads_ && source.plain_ == plain_ && source.balance_ == balance_;
    if (!whole || !same_heads || unseen_ || source.unseen_) {
        std::vector<uint8_t> rows(bytes);
        source.read_rows(rows.data(), source_offset, bytes);
        write(rows.data(), offset, bytes);
        return true;
    }
    const auto from_block = static_cast<int64_t>(source_offset / block_bytes()), to_block = static_cast<int64_t>(offset / block_bytes());
    const auto copy = [&](int64_t i) {
        const int64_t from = from_block + i, to = to_block + i;
        if (&source == this && from == to) return;
        drop_block(to);
        const block & b = source.blocks_[static_cast<size_t>(from)];
        if (b.written == 0) return;
        note_write({to, b.written});
        if (!b.sealed || source.is_packed(from) || !copy_pages(source, from, to)) {
            if (b.sealed) source.decode_block(from, rows_of(to));
            else std::memcpy(rows_of(to), source.rows_of(from), block_bytes());
        }
    };
    const auto num_blocks = static_cast<int64_t>(bytes / block_bytes());
    if (exact_.is_led_by(this)) exact_.copy(source.exact_, from_block * block_cells, to_block * block_cells, num_blocks * block_cells);
    if (&source == this && to_block > from_block) { // ranges may meet, as memmove's
        for (int64_t i = num_blocks - 1; i >= 0; i--) copy(i);
    } else {
        for (int64_t i = 0; i < num_blocks; i++) copy(i);
    }
    return true;
}

bool cache_tensor::fits_as_rows() const {
    const auto sealed = std::count_if(blocks_.begin(), blocks_.end(), [](const block & b) { return b.sealed; });
    return sealed == 0 || static_cast<size_t>(sealed) * block_bytes() <= os::available_memory();
}

void cache_tensor::keep_plain(const char * why) {
    if (plain_) return;
    for (size_t b = 0; b < blocks_.size(); b++) {
        if (blocks_[b].sealed) open_block(static_cast<int64_t>(b));
        blocks_[b].means = nullptr;
    }
    last_means_.clear();
    forget_balance();
    plain_ = true;
    open_.clear();
    for (int64_t head = 0; head < heads_; head++) show_codec(head, 0);
    count(counter::kv_plain_caches);
    ALLOY_WARN("KV cache: cache_%c_l%d stays uncompressed: %s", name_.is_value ? 'v' : 'k', name_.layer, why);
}

kv_view cache_tensor::view(const host::tensor & t) {
    if (!plain_ && !learn_heads(t)) keep_plain("its heads cannot be sealed");
    if (plain_) return plain_view(t);
    kv_view v{rows_->type, d_, heads_, t.ne[3], t.ne[1], static_cast<int64_t>(row_bytes_), true, nullptr, blocks_a_stream_, {}};
    const size_t stream = (reinterpret_cast<uintptr_t>(t.data) - address_) / (block_bytes() * static_cast<size_t>(blocks_a_stream_));
    v.pages = pages_.data() + stream * static_cast<size_t>(heads_ * blocks_a_stream_);
    v.balance = &balance_;
    return v;
}

void cache_tensor::forget_balance() {
    if (d_ != 0 && !balance_.is_none()) uncount(counter::kv_balanced_caches, 1);
    balance_ = {};
}

void cache_tensor::balance_by(channel_balance wanted) {
    if (d_ == 0 && !name_.is_value) balance_ = std::move(wanted);
}

// Attention shows how rows divide into heads. All its nodes must agree.
bool cache_tensor::learn_heads(const host::tensor & t) {
    const int64_t d = t.ne[0], heads = t.ne[2];
    const size_t head_bytes = host::api().ggml_row_size(type_, d), stream_bytes = block_bytes() * static_cast<size_t>(blocks_a_stream_);
    const size_t offset = reinterpret_cast<uintptr_t>(t.data) - address_;
    const bool whole = offset % stream_bytes == 0 && t.nb[1] == row_bytes_ && (heads == 1 || t.nb[2] == head_bytes) &&
                       head_bytes * static_cast<size_t>(heads) == row_bytes_ && (t.ne[3] == 1 || t.nb[3] == stream_bytes) && t.ne[1] % block_cells == 0;
    if (!whole || (d_ != 0 && (d != d_ || heads != heads_))) return false;
    if (d_ != 0) return true;
    cell_type declared{};
    if (!kv_codec_fits(d) || d > attention_max_d || !cell_type_of_host(type_, declared)) return false;
    const kv_codec codec = name_.is_value ? policy_.values : policy_.keys;
    if (static_cast<size_t>(kv_codec_page_bytes(codec, d)) >= block_cells * head_bytes) return false;
    d_ = d;
    heads_ = heads;
    rotation_ = is_quantised(declared) ? 0 : rotation_of(d); // the host rotates what it quantises
    if (!balance_.fits(heads, d) || rotation_ == 0) balance_ = {}; // turned by the host, rows have no channels any more
    if (!balance_.is_none()) count(counter::kv_balanced_caches);
    codecs_.resize(static_cast<size_t>(heads));
    for (int64_t head = 0; head < heads; head++) set_codec(head, codec);
    rows_ = find_attention(declared);
    pages_.resize(blocks_.size() * static_cast<size_t>(heads));
    for (size_t b = 0; b < blocks_.size(); b++) show_rows(static_cast<int64_t>(b));
    return true;
}

void cache_tensor::trim(int64_t stream, int64_t cells) {
    if (!whole_blocks_ || unseen_) return;
    auto & s = streams_[static_cast<size_t>(stream)];
    if (exact_.is_led_by(this)) exact_.forget_from(stream, cells);
    const int64_t first = (cells + block_cells - 1) / block_cells, begin = stream * blocks_a_stream_ + first;
    if (first < s.top && is_packed(begin) && runs_.count(begin) == 0) unpack(begin); // it begins before
    runs_.erase(runs_.lower_bound(begin), runs_.lower_bound((stream + 1) * blocks_a_stream_));
    for (int64_t b = first; b < s.top; b++) drop_block(stream * blocks_a_stream_ + b);
    s.top = std::min(s.top, first);
}

bool cache_tensor::is_sealable(int64_t block) const {
    const auto & b = blocks_[static_cast<size_t>(block)];
    return !b.sealed && b.written == ~uint64_t{0} && !b.stuck && b.retry <= streams_[static_cast<size_t>(stream_of(block))].rows &&
           !exact_.block_has(block);
}

std::vector<int64_t> cache_tensor::sealable(size_t most) const {
    std::vector<int64_t> found;
    for (size_t i = 0; i < open_.size() && found.size() < most && d_ != 0 && !plain_; i++) {
        if (is_sealable(open_[i])) found.push_back(open_[i]);
    }
    return found;
}

void cache_tensor::seal() {
    const auto done = [&](int32_t i) {
        block & b = blocks_[static_cast<size_t>(i)];
        if (is_sealable(i)) seal_block(i);
        b.listed = !b.sealed && b.written != 0;
        return !b.listed;
    };
    open_.erase(std::remove_if(open_.begin(), open_.end(), done), open_.end());
}

} // namespace alloy::kv
