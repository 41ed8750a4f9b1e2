// Runs of sealed blocks of which each head keeps some cells: packed into whole pages, and spread over rows again.
#include "kv/kv.h"

#include "base/counters.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace alloy::kv {
namespace {

constexpr int64_t cells = attention_block;

// Calls f(cell of the run, number among the kept) in order.
template <class F> void each_kept(const attention_packing & packing, F f) {
    int64_t number = 0;
    for (int64_t b = 0; b < packing.num_blocks; b++) {
        for (uint64_t kept = packing.kept[b]; kept != 0; kept &= kept - 1) f(b * cells + std::countr_zero(kept), number++);
    }
}

int64_t number_of(const attention_packing & packing, int64_t cell) {
    int64_t number = std::popcount(packing.kept[cell / cells] & ((uint64_t{1} << cell % cells) - 1));
    for (int64_t b = 0; b < cell / cells; b++) number += std::popcount(packing.kept[b]);
    return number;
}

void move_row(const attention_page & from, int64_t from_row, const attention_page & to, int64_t to_row, int64_t row_bytes) {
    const auto move = [&](int64_t begin, int64_t bytes) {
        std::memmove(const_cast<uint8_t *>(to.data) + begin + to_row * bytes, from.data + begin + from_row * bytes, static_cast<size_t>(bytes));
    };
    move(0, row_bytes);
    move(cells * row_bytes, 2); // its scale
}

} // namespace

const std::vector<packed_head> * cache_tensor::run_of(int64_t block) const {
    if (runs_.empty()) return nullptr;
    const auto after = runs_.upper_bound(block);
    if (after == runs_.begin()) return nullptr;
    const auto at = std::prev(after);
    return block < at->first + at->second.front().cells.num_blocks ? &at->second : nullptr;
}

bool cache_tensor::find_sealed_run(int64_t run, int64_t & first, int64_t & num) {
    const int64_t end = (run + 1) * attention_packing::max_blocks;
    if (plain_ || d_ == 0 || end > static_cast<int64_t>(blocks_.size()) || stream_of(end - 1) != stream_of(run * attention_packing::max_blocks)) return false;
    for (first = end; first > run * attention_packing::max_blocks; first--) {
        const block & b = blocks_[static_cast<size_t>(first - 1)];
        if (b.sealed && !is_packed(first - 1)) continue;
        if (b.sealed || !exact_.block_has_sink(first - 1)) return false; // packed already, or still to be sealed
        break;                                                           // sinks stay rows
    }
    num = end - first;
    return num > 1;
}

bool cache_tensor::may_pack(int64_t first, int64_t num, int64_t head) const {
    for (int64_t b = 1; b < num; b++) {
        const attention_page &one = page(first, head), &other = page(first + b, head);
        if (other.cells != one.cells || other.mean != one.mean) return false;
    }
    return true;
}

void cache_tensor::pack(int64_t num, packed_runs & made) {
    const int64_t first = made.begin()->first;
    runs_.merge(made);
    std::vector<packed_head> & run = runs_.find(first)->second;
    for (int64_t head = 0; head < heads_; head++) {
        attention_packing & packing = run[static_cast<size_t>(head)].cells;
        packing.first_block = first % blocks_a_stream_;
        packing.num_blocks = num;
        const int64_t row_bytes = cell_row_bytes(page(first, head).cells->type, d_);
        int64_t kept = 0;
        each_kept(packing, [&](int64_t cell, int64_t number) {
            if (cell != number) move_row(page(first + cell / cells, head), cell % cells, page(first + number / cells, head), number % cells, row_bytes);
            kept = number + 1;
        });
        for (int64_t b = 0; b < num; b++) {
            attention_page & at = page(first + b, head);
            if (b * cells >= kept) {
                const size_t bytes = page_bytes(first + b, head);
                arena_.give_back(const_cast<uint8_t *>(at.data), bytes);
                at = {};
                uncount(counter::kv_live_bytes, bytes);
                uncount(counter::kv_sealed_bytes, bytes);
                count(counter::kv_saved_bytes, bytes);
                if (!name_.is_value) count(counter::kv_evicted_rows, static_cast<uint64_t>(cells));
            }
            at.packing = &packing;
        }
    }
}

// rows[64][d] as sealed pages hold them. In the place of an evicted one stands the row of the head that was attended least of those kept: it draws as
// little attention, whereas one of zeros would not.
void cache_tensor::unpack_rows(const packed_head & of, int64_t block, int64_t head, float * rows) const {
    const int64_t first_of_stream = block - block % blocks_a_stream_, first = first_of_stream + of.cells.first_block;
    std::vector<float> from(static_cast<size_t>(cells * d_));
    const attention_page * expanded = nullptr;
    const auto copy = [&](int64_t cell, int64_t to) {
        const int64_t number = number_of(of.cells, cell);
        const attention_page & at = page(first + number / cells, head);
        if (&at != expanded) at.cells->expand(at.data, cell_row_bytes(at.cells->type, d_), cells, d_, from.data());
        expanded = &at;
        std::copy_n(from.data() + number % cells * d_, d_, rows + to * d_);
    };
    const int64_t begin = (block - first) * cells;
    const uint64_t kept = of.cells.kept[block - first];
    for (const bool evicted : {false, true}) {
        for (int64_t c = 0; c < cells; c++) {
            if ((kept >> c & 1) == (evicted ? 0 : 1)) copy(evicted ? of.least : begin + c, c);
        }
    }
}

// The run of a block becomes rows, of keys and values alike: what is missing of one must not be there of the other.
void cache_tensor::unpack(int64_t block) {
    for (cache_tensor * t : {this, partner_}) {
        if (t == nullptr || !t->is_packed(block)) continue;
        const auto at = std::prev(t->runs_.upper_bound(block));
        const int64_t first = at->first, end = first + at->second.front().cells.num_blocks;
        for (int64_t b = first; b < end; b++) t->decode_block(b, t->rows_of(b));
        for (int64_t b = first; b < end; b++) t->show_opened(b);
        t->runs_.erase(at);
    }
}

void cache_tensor::unpack_all() {
    while (!runs_.empty()) unpack(runs_.begin()->first);
}

} // namespace alloy::kv
