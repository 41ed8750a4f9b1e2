// Cells that stay rows: the first tokens of each sequence (attention sinks), and the most recent ones.
//
// The host does not say whose a cell is. Tokens of a sequence follow one another in position, and a state is restored row after row: that tells the
// sequences apart, but for some that went away unseen. Their cells are forgotten when others take them, when the graph ends before them, or when
// all together would hold too large a share of the cache. A state's rows come in the order of the cells they had, which need not be that of the
// tokens: those that were exact when it was saved are known by their bytes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <utility>
#include <vector>

namespace alloy::kv {

// Tokens at positions below this draw attention whatever they say.
constexpr int32_t sink_positions = 4;

class exact_cells {
  public:
    explicit exact_cells(int64_t window) : window_(window) {} // that many recent cells of a sequence
    // The cells of a store, numbered through its streams. The first cache that says so leads: of what the host reads and writes, its alone counts.
    void cover(const void * cache, int64_t cells, int64_t streams);
    bool is_led_by(const void * cache) const { return cache == leader_; }

    // Tokens of a graph, in its order. Positions: null: not known; ordered: those of a sequence follow one another.
    void write(const std::vector<int64_t> & cells, const int32_t * positions, bool ordered);
    // The host saves these rows, and restores them; a restored sequence ends when the leader is written after another cache, or a graph has run.
    void save(int64_t cell, uint64_t hash_of_row);
    void restore(const void * cache, int64_t first, const std::vector<uint64_t> & hashes_of_rows);
    void copy(const exact_cells & source, int64_t from, int64_t to, int64_t cells);
    void forget_from(int64_t stream, int64_t cell); // of the stream: nobody uses it, nor those behind it
    void clear();

    bool has(int64_t cell) const { return cell < static_cast<int64_t>(owners_.size()) && owners_[static_cast<size_t>(cell)] != none; }
    bool has_sink(int64_t cell) const { return has(cell) && owners_[static_cast<size_t>(cell)] == sink; }
    bool block_has(int64_t block) const;
    bool block_has_sink(int64_t block) const;

  private:
    static constexpr int64_t unknown = -1;
    using number = uint8_t; // of a sequence, from 1
    static constexpr number none = 0, sink = 255;
    struct sequence {
        int64_t stream = 0, next = unknown; // the position of its next token
        uint64_t used = 0;                  // the graph that last wrote to it
        bool saved = false;                 // since then: its cells may be free
        bool restored = false;              // no graph has gone on with it: if its positions were shifted, `next` is wrong
        std::deque<int64_t> cells;          // the most recent, some of which others may have taken
    };
    sequence & of(number n) { return sequences_[n - size_t{1}]; }
    int64_t next_of(int64_t cell) const { return sequences_[owners_[static_cast<size_t>(cell)] - size_t{1}].next; }
    number find(int64_t stream, int64_t position);
    number begin(int64_t stream);
    void append(number n, int64_t cell);
    void release(number n, int64_t cell);
    void drop_cells(number n);
    void take_back(number n, int64_t position);
    void set_sink(int64_t cell);
    void restore_known(int64_t cell, int32_t order);

    int64_t window_;
    const void * leader_ = nullptr;
    uint64_t graph_ = 0;
    int64_t cells_a_stream_ = 1;
    size_t most_sequences_ = 0; // of all streams
    std::vector<number> owners_; // [cells]
    std::vector<sequence> sequences_;
    std::vector<int64_t> sinks_;

    static constexpr int32_t order_of_sinks = -1;
    std::unordered_map<uint64_t, int32_t> saved_; // hash of a row -> its place among the recent cells of its sequence
    std::deque<uint64_t> saved_hashes_;           // the oldest first
    struct {
        const void * last = nullptr; // the cache that was written last; null: a sequence is to begin
        number into = none;
        int64_t rows = 0;
        std::vector<int64_t> guessed_sinks;
        std::vector<std::pair<int32_t, int64_t>> known; // (place, cell) of the recent ones
        bool any_known = false;
    } restored_;
};

} // namespace alloy::kv
