// The most recent cells of each sequence, which stay rows.
//
// The host does not say whose a cell is. Tokens of a sequence follow one another in position, and a state is restored row after row: that tells the
// sequences apart, but for some that went away unseen. Their cells are forgotten when others take them, when the graph ends before them, or when
// all together would hold too large a share of the cache.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace alloy::kv {

class recent_cells {
  public:
    explicit recent_cells(int64_t window) : window_(window) {}
    // The cells of a store, numbered through its streams; the first cache that says so leads: of restored rows, its alone count.
    void cover(const void * cache, int64_t cells, int64_t streams);
    bool is_led_by(const void * cache) const { return cache == leader_; }

    void write(const std::vector<int64_t> & cells, const int32_t * positions); // by a graph, in its order; null: positions are not known
    // Which restored sequence a write of the host to this cache belongs to: the same number as before, or a new one.
    uint64_t restored_sequence(const void * cache);
    void restore(int64_t first, int64_t cells); // of that sequence
    void copy(int64_t from, int64_t to, int64_t cells);
    void forget_from(int64_t stream, int64_t cell); // of the stream: nobody uses it, nor those behind it
    void clear();

    bool has(int64_t cell) const { return cell < static_cast<int64_t>(owners_.size()) && owners_[static_cast<size_t>(cell)] != 0; }
    bool has_any(int64_t first, int64_t cells) const;

  private:
    static constexpr int64_t unknown = -1;
    struct sequence {
        int64_t stream = 0, next = unknown; // the position of its next token
        uint64_t used = 0;                  // the graph that last wrote to it
        std::deque<int64_t> cells;          // the last `window_`, some of which others may have taken
    };
    using number = uint8_t; // of a sequence, from 1; 0: none
    sequence & of(number n) { return sequences_[n - size_t{1}]; }
    number find(int64_t stream, int64_t position);
    number begin(int64_t stream);
    void append(number n, int64_t cell, int64_t position);
    void release(number n, int64_t cell);
    void cut(number n, int64_t position);

    int64_t window_;
    const void * leader_ = nullptr;
    const void * restoring_ = nullptr; // the cache that was written last, since the last graph
    uint64_t restored_ = 0, graph_ = 0;
    number restored_into_ = 0; // 0: a sequence is to begin
    int64_t cells_a_stream_ = 1;
    size_t most_sequences_ = 0; // of all streams
    std::vector<number> owners_; // [cells]
    std::vector<sequence> sequences_;
};

} // namespace alloy::kv
