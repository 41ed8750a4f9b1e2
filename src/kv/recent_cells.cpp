#include "kv/recent_cells.h"

#include <algorithm>
#include <limits>

namespace alloy::kv {
namespace {

// Sequences at rest, and those that went away, hold at most so large a part of a stream, and need not be fewer than some.
constexpr int64_t largest_part = 8, fewest_sequences = 4;

} // namespace

void recent_cells::cover(const void * cache, int64_t cells, int64_t streams) {
    if (leader_ != nullptr) return;
    leader_ = cache;
    if (window_ == 0) return;
    cells_a_stream_ = std::max<int64_t>(1, cells / streams);
    window_ = std::min(window_, cells_a_stream_);
    const int64_t a_stream = std::max(fewest_sequences, cells_a_stream_ / largest_part / window_);
    most_sequences_ = static_cast<size_t>(std::min<int64_t>(a_stream * streams, std::numeric_limits<number>::max()));
    owners_.assign(static_cast<size_t>(cells), 0);
}

void recent_cells::write(const std::vector<int64_t> & cells, const int32_t * positions) {
    restoring_ = nullptr;
    graph_++;
    number n = 0;
    for (size_t i = 0; i < cells.size(); i++) {
        if (cells[i] < 0 || cells[i] >= static_cast<int64_t>(owners_.size())) continue;
        const int64_t stream = cells[i] / cells_a_stream_, position = positions != nullptr ? positions[i] : unknown;
        const bool goes_on = n != 0 && of(n).stream == stream && of(n).next == position;
        if (!goes_on) n = find(stream, position);
        append(n, cells[i], position);
    }
}

// The sequence that a token at this position goes on with. One that was restored says nothing of positions; a first token begins a new one.
recent_cells::number recent_cells::find(int64_t stream, int64_t position) {
    number follows = 0, open = 0, before = 0;
    const auto newer = [&](number than, const sequence & s) { return than == 0 || of(than).used < s.used; };
    for (size_t i = 0; i < sequences_.size(); i++) {
        const sequence & s = sequences_[i];
        if (s.stream != stream || s.cells.empty()) continue;
        const auto n = static_cast<number>(i + 1);
        const bool held = s.next > position && s.next - static_cast<int64_t>(s.cells.size()) <= position;
        if (s.next == position && newer(follows, s)) follows = n;
        else if (s.next == unknown && position > 0 && newer(open, s)) open = n;
        else if (position > 0 && held && s.used < graph_ && newer(before, s)) before = n;
    }
    if (follows != 0) return follows;
    if (open != 0) return open;
    if (before == 0) return begin(stream);
    cut(before, position); // tokens were taken back
    return before;
}

recent_cells::number recent_cells::begin(int64_t stream) {
    auto place = sequences_.end();
    if (sequences_.size() < most_sequences_) {
        place = sequences_.insert(place, sequence());
    } else { // that of the one that rested longest
        place = std::min_element(sequences_.begin(), sequences_.end(), [](const sequence & a, const sequence & b) { return a.used < b.used; });
    }
    const auto n = static_cast<number>(place - sequences_.begin() + 1);
    for (const int64_t cell : place->cells) release(n, cell);
    *place = {};
    place->stream = stream;
    return n;
}

void recent_cells::append(number n, int64_t cell, int64_t position) {
    sequence & s = of(n);
    owners_[static_cast<size_t>(cell)] = n;
    s.cells.push_back(cell);
    s.next = position == unknown ? unknown : position + 1;
    s.used = graph_;
    if (static_cast<int64_t>(s.cells.size()) <= window_) return;
    release(n, s.cells.front());
    s.cells.pop_front();
}

void recent_cells::release(number n, int64_t cell) {
    number & owner = owners_[static_cast<size_t>(cell)];
    if (owner == n) owner = 0;
}

// The sequence ends before this position.
void recent_cells::cut(number n, int64_t position) {
    sequence & s = of(n);
    for (; !s.cells.empty() && s.next > position; s.next--) {
        release(n, s.cells.back());
        s.cells.pop_back();
    }
}

uint64_t recent_cells::restored_sequence(const void * cache) {
    const bool begins = restored_ == 0 || restoring_ == nullptr || (cache == leader_ && restoring_ != leader_);
    restoring_ = cache;
    if (begins) {
        restored_++;
        restored_into_ = 0;
    }
    return restored_;
}

void recent_cells::restore(int64_t first, int64_t cells) {
    const int64_t end = std::min(first + cells, static_cast<int64_t>(owners_.size()));
    for (int64_t cell = std::max(first, end - window_); cell < end; cell++) {
        if (restored_into_ == 0) {
            graph_++;
            restored_into_ = begin(cell / cells_a_stream_);
        }
        append(restored_into_, cell, unknown);
    }
}

void recent_cells::copy(int64_t from, int64_t to, int64_t cells) {
    number n = 0;
    for (int64_t i = 0; i < cells; i++) {
        if (!has(from + i) || to + i >= static_cast<int64_t>(owners_.size())) continue;
        if (n == 0) n = begin((to + i) / cells_a_stream_);
        append(n, to + i, unknown);
    }
}

void recent_cells::forget_from(int64_t stream, int64_t cell) {
    for (sequence & s : sequences_) {
        if (s.stream != stream) continue;
        const auto n = static_cast<number>(&s - sequences_.data() + 1);
        for (const int64_t c : s.cells) {
            if (c - stream * cells_a_stream_ >= cell) release(n, c);
        }
    }
}

void recent_cells::clear() {
    std::fill(owners_.begin(), owners_.end(), number{0});
    sequences_.clear();
    restoring_ = nullptr;
}

bool recent_cells::has_any(int64_t first, int64_t cells) const {
    for (int64_t cell = first; cell < first + cells; cell++) {
        if (has(cell)) return true;
    }
    return false;
}

} // namespace alloy::kv
