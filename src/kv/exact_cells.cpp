#include "kv/exact_cells.h"

#include "kernels/attention/attention.h"

#include <algorithm>

namespace alloy::kv {
namespace {

// Sequences at rest, and those that went away, hold at most so large a part of a stream, and need not be fewer than some.
constexpr int64_t largest_part = 8, fewest_sequences = 4;
constexpr size_t most_saved = 1 << 15; // rows: of a few hundred states

} // namespace

void exact_cells::cover(const void * cache, int64_t cells, int64_t streams) {
    if (leader_ != nullptr) return;
    leader_ = cache;
    cells_a_stream_ = std::max<int64_t>(1, cells / streams);
    window_ = std::min(window_, cells_a_stream_);
    const int64_t a_stream = std::max(fewest_sequences, cells_a_stream_ / largest_part / std::max<int64_t>(1, window_));
    most_sequences_ = static_cast<size_t>(std::min<int64_t>(a_stream * streams, sink - 1));
    owners_.assign(static_cast<size_t>(cells), none);
}

void exact_cells::write(const std::vector<int64_t> & cells, const int32_t * positions, bool ordered) {
    restored_.last = nullptr;
    graph_++;
    number n = none;
    for (size_t i = 0; i < cells.size(); i++) {
        if (cells[i] < 0 || cells[i] >= static_cast<int64_t>(owners_.size())) continue;
        const int64_t stream = cells[i] / cells_a_stream_, position = positions != nullptr && ordered ? positions[i] : unknown;
        const bool goes_on = n != none && of(n).stream == stream && of(n).next == position;
        if (!goes_on) n = find(stream, position);
        // Without positions the first cells of all are taken for the first tokens.
        if ((positions != nullptr ? positions[i] : cells[i] % cells_a_stream_) < sink_positions) set_sink(cells[i]);
        else append(n, cells[i]);
        of(n).next = position == unknown ? unknown : position + 1;
        of(n).used = graph_;
        of(n).saved = of(n).restored = false;
    }
}

// The sequence that a token at this position goes on with; a first token begins a new one. Where tokens are taken back, few are.
exact_cells::number exact_cells::find(int64_t stream, int64_t position) {
    number follows = none, overlaps = none, restored = none;
    const auto newer = [&](number than, const sequence & s) { return than == none || of(than).used < s.used; };
    for (size_t i = 0; i < sequences_.size(); i++) {
        const sequence & s = sequences_[i];
        if (s.stream != stream) continue;
        const auto n = static_cast<number>(i + 1);
        const bool holds = position < s.next && s.next - static_cast<int64_t>(s.cells.size()) <= position;
        if (s.next == position && newer(follows, s)) follows = n;
        const auto nearer = [&] { return overlaps == none || s.next < of(overlaps).next || (s.next == of(overlaps).next && newer(overlaps, s)); };
        if (position > 0 && holds && s.used < graph_ && nearer()) overlaps = n;
        if (position > 0 && s.restored && newer(restored, s)) restored = n;
    }
    if (follows != none) return follows;
    if (overlaps != none) take_back(overlaps, position);
    return overlaps != none ? overlaps : restored != none ? restored : begin(stream);
}

exact_cells::number exact_cells::begin(int64_t stream) {
    auto place = sequences_.end();
    if (sequences_.size() < most_sequences_) {
        place = sequences_.insert(place, sequence());
    } else { // that of the one that rested longest, of those that were saved if there are any
        place = std::min_element(sequences_.begin(), sequences_.end(),
                                 [](const sequence & a, const sequence & b) { return std::pair(!a.saved, a.used) < std::pair(!b.saved, b.used); });
    }
    const auto n = static_cast<number>(place - sequences_.begin() + 1);
    drop_cells(n);
    *place = {};
    place->stream = stream;
    place->used = graph_;
    return n;
}

void exact_cells::append(number n, int64_t cell) {
    sequence & s = of(n);
    owners_[static_cast<size_t>(cell)] = n;
    s.cells.push_back(cell);
    if (static_cast<int64_t>(s.cells.size()) <= window_) return;
    release(n, s.cells.front());
    s.cells.pop_front();
}

void exact_cells::release(number n, int64_t cell) {
    number & owner = owners_[static_cast<size_t>(cell)];
    if (owner == n) owner = none;
}

void exact_cells::drop_cells(number n) {
    for (const int64_t cell : of(n).cells) release(n, cell);
    of(n).cells.clear();
}

// The sequence ends before this position: drafts were wrong, or an answer is asked for again.
void exact_cells::take_back(number n, int64_t position) {
    sequence & s = of(n);
    for (; !s.cells.empty() && s.next > position; s.next--) {
        release(n, s.cells.back());
        s.cells.pop_back();
    }
}

void exact_cells::set_sink(int64_t cell) {
    if (owners_[static_cast<size_t>(cell)] == sink) return;
    const auto is_gone = [&](int64_t c) { return owners_[static_cast<size_t>(c)] != sink; };
    sinks_.erase(std::remove_if(sinks_.begin(), sinks_.end(), is_gone), sinks_.end());
    sinks_.push_back(cell);
    owners_[static_cast<size_t>(cell)] = sink;
}

void exact_cells::save(int64_t cell, uint64_t hash) {
    if (!has(cell)) return;
    const number n = owners_[static_cast<size_t>(cell)];
    int32_t order = order_of_sinks;
    if (n != sink) {
        order = static_cast<int32_t>(std::find(of(n).cells.begin(), of(n).cells.end(), cell) - of(n).cells.begin());
        of(n).saved = true;
    }
    if (saved_.insert_or_assign(hash, order).second) saved_hashes_.push_back(hash);
    if (saved_hashes_.size() <= most_saved) return;
    saved_.erase(saved_hashes_.front());
    saved_hashes_.pop_front();
}

void exact_cells::restore(const void * cache, int64_t first, const std::vector<uint64_t> & hashes) {
    if (restored_.last == nullptr || (cache == leader_ && restored_.last != leader_)) restored_ = {};
    restored_.last = cache;
    if (cache != leader_) return;
    for (size_t i = 0; i < hashes.size() && first + static_cast<int64_t>(i) < static_cast<int64_t>(owners_.size()); i++, restored_.rows++) {
        const int64_t cell = first + static_cast<int64_t>(i);
        if (restored_.into == none) {
            graph_++;
            restored_.into = begin(cell / cells_a_stream_);
            of(restored_.into).restored = true;
        }
        of(restored_.into).next = restored_.rows + 1;
        owners_[static_cast<size_t>(cell)] = none;
        if (const auto known = saved_.find(hashes[i]); known != saved_.end()) {
            restore_known(cell, known->second);
        } else if (restored_.any_known) {
            continue;
        } else if (restored_.rows < sink_positions) {
            set_sink(cell);
            restored_.guessed_sinks.push_back(cell);
        } else {
            append(restored_.into, cell);
        }
    }
}

void exact_cells::restore_known(int64_t cell, int32_t order) {
    const number n = restored_.into;
    if (!restored_.any_known) { // what was taken by its place was a guess
        for (const int64_t c : restored_.guessed_sinks) release(sink, c);
        drop_cells(n);
        restored_.any_known = true;
    }
    if (order == order_of_sinks) return set_sink(cell);
    const std::pair<int32_t, int64_t> entry(order, cell);
    restored_.known.insert(std::upper_bound(restored_.known.begin(), restored_.known.end(), entry), entry);
    drop_cells(n);
    for (const auto & [place, c] : restored_.known) append(n, c);
}

void exact_cells::copy(const exact_cells & source, int64_t from, int64_t to, int64_t cells) {
    std::vector<int64_t> recent; // all of them before a sequence gives way, which may be the one that is copied
    int64_t next = unknown;
    for (int64_t i = 0; i < cells; i++) {
        if (!source.has(from + i) || to + i >= static_cast<int64_t>(owners_.size())) continue;
        if (source.has_sink(from + i)) {
            set_sink(to + i);
            continue;
        }
        if (recent.empty()) next = source.next_of(from + i);
        recent.push_back(to + i);
    }
    if (recent.empty()) return;
    const number n = begin(recent.front() / cells_a_stream_);
    of(n).next = next;
    of(n).restored = true;
    for (const int64_t cell : recent) append(n, cell);
}

void exact_cells::forget_from(int64_t stream, int64_t cell) {
    const int64_t first = stream * cells_a_stream_ + cell, end = (stream + 1) * cells_a_stream_;
    const auto forget = [&](number n, int64_t c) {
        if (c >= first && c < end) release(n, c);
    };
    for (const int64_t c : sinks_) forget(sink, c);
    for (size_t i = 0; i < sequences_.size(); i++) {
        if (sequences_[i].stream != stream) continue;
        for (const int64_t c : sequences_[i].cells) forget(static_cast<number>(i + 1), c);
    }
}

void exact_cells::clear() {
    std::fill(owners_.begin(), owners_.end(), none);
    sequences_.clear();
    sinks_.clear();
    restored_ = {};
}

bool exact_cells::block_has(int64_t block) const {
    number any = none;
    const auto end = std::min<size_t>(owners_.size(), static_cast<size_t>(block + 1) * attention_block);
    for (auto cell = static_cast<size_t>(block) * attention_block; cell < end; cell++) any |= owners_[cell];
    return any != none;
}

bool exact_cells::block_has_sink(int64_t block) const {
    for (int64_t cell = block * attention_block; cell < (block + 1) * attention_block; cell++) {
        if (has_sink(cell)) return true;
    }
    return false;
}

} // namespace alloy::kv
