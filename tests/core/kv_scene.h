// One cache tensor of the KV store in memory of its own, as a graph and the host see it.
#pragma once
#include "fake_ggml.h"

#include "base/counters.h"
#include "base/os.h"
#include "host/symbols.h"
#include "kernels/rowwise/rowwise.h"
#include "kv/kv.h"
#include "support/values.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include <sys/mman.h>

namespace alloy::test {

using bytes_t = std::vector<uint8_t>;

constexpr int type_q8_0 = 8;
constexpr int64_t block = attention_block;

struct cache_shape {
    int type;
    int64_t d, heads, cells, streams;
    size_t row_bytes() const { return host::api().ggml_row_size(type, d * heads); }
    size_t block_bytes() const { return row_bytes() * block; }
    size_t bytes() const { return row_bytes() * static_cast<size_t>(cells * streams); }
    int64_t blocks() const { return cells * streams / block; }
    std::string name() const {
        return std::string(type == host::type_f16 ? "f16" : type == host::type_f32 ? "f32" : "q8_0") + " " + std::to_string(heads) + " x " + std::to_string(d) +
               ", " + std::to_string(streams) + " x " + std::to_string(cells) + " cells";
    }
};

inline bool is_resident(const void * page) {
    unsigned char in_memory = 0;
    return mincore(const_cast<void *>(page), 1, &in_memory) == 0 && (in_memory & 1) != 0;
}
inline bool is_mapped(const void * page) {
    unsigned char in_memory = 0;
    const auto begin = reinterpret_cast<uintptr_t>(page) / os::page_bytes() * os::page_bytes();
    return mincore(reinterpret_cast<void *>(begin), 1, &in_memory) == 0;
}

// Squared error of a row over its energy that a codec may leave: those of a Gaussian, with room for rows that are not.
inline double loss_of(kv_codec codec) {
    switch (codec) {
        case kv_codec::i8: return 3e-4;
        case kv_codec::z6: return 3e-3;
        case kv_codec::n5: return 6e-3;
        case kv_codec::n4: return 2e-2;
        default: return 1e-1;
    }
}

// Factors of 1/4 to 4, unlike from head to head.
inline kv::channel_balance strong_balance(int64_t heads, int64_t d) {
    std::vector<float> queries, keys;
    for (int64_t i = 0; i < heads * d; i++) {
        queries.push_back(std::exp2(static_cast<float>(i * 7 % 9 - 4) / 2));
        keys.push_back(1 / queries.back());
    }
    return {{queries.data(), heads * d, heads}, {keys.data(), heads * d, heads}, d, {}};
}

class cache_scene {
  public:
    const cache_shape shape;

    cache_scene(const cache_shape & s, const kv::policy & p, bool values = false, kv::page_arena * shared = nullptr,
                kv::eviction * evicted = nullptr)
        : shape(s), arena_(shared != nullptr ? *shared : own_arena_), evicted_(evicted != nullptr ? *evicted : none_evicted_), exact_(p.window) {
        std::snprintf(declared_.name, sizeof(declared_.name), "cache_%c_l0", values ? 'v' : 'k');
        declared_.type = s.type;
        const int64_t ne[] = {s.d * s.heads, s.cells, s.streams, 1};
        for (int i = 0; i < host::max_dims; i++) declared_.ne[i] = ne[i];
        declared_.nb[0] = host::api().ggml_row_size(s.type, 32) / (s.type == type_q8_0 ? 1 : 32);
        declared_.nb[1] = s.row_bytes();
        declared_.nb[2] = declared_.nb[3] = s.row_bytes() * static_cast<size_t>(s.cells);
        mapped_ = (s.bytes() + os::page_bytes() - 1) / os::page_bytes() * os::page_bytes();
        rows_ = static_cast<uint8_t *>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        declared_.data = rows_;
        cache = std::make_unique<kv::cache_tensor>(declared_, rows_, s.bytes(), p, arena_, rates_, evicted_, exact_);
    }
    ~cache_scene() {
        cache.reset();
        munmap(rows_, mapped_);
    }
    cache_scene(const cache_scene &) = delete;

    std::unique_ptr<kv::cache_tensor> cache;

    // The tensor that FLASH_ATTN_EXT reads.
    host::tensor heads(int64_t cells, int64_t first_stream = 0, int64_t streams = 1) const {
        host::tensor t = declared_;
        const size_t stream_bytes = shape.row_bytes() * static_cast<size_t>(shape.cells);
        t.ne[0] = shape.d, t.ne[1] = cells, t.ne[2] = shape.heads, t.ne[3] = streams;
        t.nb[1] = shape.row_bytes(), t.nb[2] = host::api().ggml_row_size(shape.type, shape.d), t.nb[3] = stream_bytes;
        t.data = rows_ + static_cast<size_t>(first_stream) * stream_bytes;
        return t;
    }
    kv::kv_view view() const { return cache->view(heads(shape.cells, 0, shape.streams)); }
    bool is_sealed(int64_t b) const {
        const kv::kv_view v = view();
        const int64_t a_stream = shape.cells / block;
        return v.may_be_sealed && is_coded(v.of(b / a_stream, 0).pages[b % a_stream].cells->type);
    }
    int64_t num_sealed() const {
        int64_t n = 0;
        for (int64_t b = 0; b < shape.blocks(); b++) n += is_sealed(b);
        return n;
    }
    const uint8_t * rows_of(int64_t b) const { return rows_ + static_cast<size_t>(b) * shape.block_bytes(); }
    bool has_memory(int64_t b) const {
        for (size_t at = 0; at < shape.block_bytes(); at += os::page_bytes()) {
            if (is_resident(rows_of(b) + at)) return true;
        }
        return false;
    }

    // Rows of numbers as they would be stored.
    bytes_t stored(const std::vector<float> & x) const {
        bytes_t out(host::api().ggml_row_size(shape.type, static_cast<int64_t>(x.size())));
        host::api().ggml_quantize_chunk(shape.type, x.data(), out.data(), 0, 1, static_cast<int64_t>(x.size()), nullptr);
        return out;
    }
    bytes_t random_rows(int64_t n, std::mt19937_64 & engine) const {
        std::normal_distribution<float> normal;
        std::vector<float> x(static_cast<size_t>(n * shape.d * shape.heads));
        for (float & v : x) v = normal(engine);
        return stored(x);
    }
    std::vector<float> numbers(const uint8_t * row) const { // of one row, all heads
        std::vector<float> x(static_cast<size_t>(block * shape.d * shape.heads));
        cell_type type{};
        EXPECT_TRUE(cell_type_of_host(shape.type, type));
        find_attention(type)->expand(row, static_cast<int64_t>(shape.row_bytes()), 1, shape.d * shape.heads, x.data());
        x.resize(static_cast<size_t>(shape.d * shape.heads));
        return x;
    }

    // What SET_ROWS does with these cells of the whole tensor, for tokens at these positions: the store is told first.
    void set_rows(const std::vector<int64_t> & cells, const bytes_t & rows, const std::vector<int32_t> & positions) {
        std::vector<kv::block_write> writes;
        for (const int64_t cell : cells) {
            const int64_t b = cell / block;
            auto w = std::find_if(writes.begin(), writes.end(), [&](const kv::block_write & x) { return x.block == b; });
            if (w == writes.end()) w = writes.insert(writes.end(), {b, 0});
            w->cells |= uint64_t{1} << cell % block;
        }
        cache->expect(writes);
        exact_.write(cells, positions.data(), true);
        for (size_t i = 0; i < cells.size(); i++) std::memcpy(row(cells[i]), rows.data() + i * shape.row_bytes(), shape.row_bytes());
    }
    // Tokens at the positions of their cells, or without sinks further on.
    void set_rows(const std::vector<int64_t> & cells, const bytes_t & rows, bool sinks = false) {
        std::vector<int32_t> positions;
        for (const int64_t cell : cells) positions.push_back(static_cast<int32_t>(cell % shape.cells) + (sinks ? 0 : kv::sink_positions));
        set_rows(cells, rows, positions);
    }
    void set_rows(int64_t first, const bytes_t & rows, bool sinks = false) {
        std::vector<int64_t> cells(rows.size() / shape.row_bytes());
        for (size_t i = 0; i < cells.size(); i++) cells[i] = first + static_cast<int64_t>(i);
        set_rows(cells, rows, sinks);
    }
    void write(size_t offset, const bytes_t & bytes) { cache->write(bytes.data(), offset, bytes.size()); }
    bytes_t read(size_t offset, size_t bytes) const {
        bytes_t data(bytes, 0xee);
        cache->read(data.data(), offset, bytes);
        return data;
    }
    bytes_t read_block(int64_t b) const { return read(static_cast<size_t>(b) * shape.block_bytes(), shape.block_bytes()); }
    bytes_t read_all() const { return read(0, shape.bytes()); }

    // The largest loss of a head in `rows` of the cache's type against `wanted`. Rows near 0 are as exact as others: a mean is taken from all.
    double loss(const bytes_t & wanted, const bytes_t & rows) const {
        const double least = 0.5 * static_cast<double>(shape.d);
        EXPECT_EQ(wanted.size(), rows.size());
        double worst = 0;
        for (size_t at = 0; at < rows.size(); at += shape.row_bytes()) {
            const std::vector<float> x = numbers(wanted.data() + at), y = numbers(rows.data() + at);
            for (int64_t h = 0; h < shape.heads; h++) {
                double error = 0, energy = least;
                for (int64_t i = h * shape.d; i < (h + 1) * shape.d; i++) {
                    const auto e = static_cast<size_t>(i);
                    error += (double(x[e]) - y[e]) * (double(x[e]) - y[e]);
                    energy += double(x[e]) * x[e];
                }
                if (!(error / energy <= worst)) worst = error / energy;
            }
        }
        return worst;
    }

    // The table against the rows: pages are rows where they belong, or decode to what read() gives.
    void check_view() const {
        const kv::kv_view v = view();
        if (!v.may_be_sealed) return;
        const size_t head_bytes = host::api().ggml_row_size(shape.type, shape.d);
        const int64_t a_stream = shape.cells / block, turn = shape.type == type_q8_0 ? 0 : rotation_of(shape.d);
        std::vector<float> x(static_cast<size_t>(block * shape.d));
        for (int64_t b = 0; b < shape.blocks(); b++) {
            const bytes_t rows = is_sealed(b) ? read_block(b) : bytes_t();
            for (int64_t h = 0; h < shape.heads; h++) {
                const attention_page & p = v.of(b / a_stream, h).pages[b % a_stream];
                ASSERT_EQ(is_coded(p.cells->type), !rows.empty()) << "heads of block " << b;
                if (rows.empty()) {
                    ASSERT_EQ(p.data, rows_of(b) + static_cast<size_t>(h) * head_bytes) << "block " << b;
                    ASSERT_EQ(p.cells->type, v.declared);
                    continue;
                }
                p.cells->expand(p.data, cell_row_bytes(p.cells->type, shape.d), block, shape.d, x.data());
                for (int64_t i = 0; p.mean != nullptr && i < block * shape.d; i++) x[static_cast<size_t>(i)] += p.mean[i % shape.d];
                if (turn > 0) hadamard_in_place(x.data(), block * shape.d / turn, turn);
                v.balance->divide(h, x);
                for (int64_t c = 0; c < block; c++) {
                    const bytes_t head = stored({x.begin() + c * shape.d, x.begin() + (c + 1) * shape.d});
                    ASSERT_EQ(std::memcmp(head.data(), rows.data() + static_cast<size_t>(c) * shape.row_bytes() + static_cast<size_t>(h) * head_bytes, head_bytes), 0)
                        << "block " << b << " cell " << c;
                }
            }
        }
    }
    // Bytes of the pages of block b as the table shows them, 0 for rows.
    size_t sealed_bytes(int64_t b) const {
        const kv::kv_view v = view();
        size_t bytes = 0;
        const int64_t a_stream = shape.cells / block;
        for (int64_t h = 0; h < shape.heads && v.may_be_sealed; h++) {
            const attention_page & p = v.of(b / a_stream, h).pages[b % a_stream];
            if (is_coded(p.cells->type)) bytes += static_cast<size_t>(block * (cell_row_bytes(p.cells->type, shape.d) + 2));
        }
        return bytes;
    }

  private:
    uint8_t * row(int64_t cell) { return rows_ + static_cast<size_t>(cell) * shape.row_bytes(); }

    kv::page_arena own_arena_;
    kv::page_arena & arena_;
    kv::head_rates rates_{kv::policy{}};
    kv::eviction none_evicted_{kv::policy{}};
    kv::eviction & evicted_;
    kv::exact_cells exact_;
    host::tensor declared_{};
    uint8_t * rows_ = nullptr;
    size_t mapped_ = 0;
};

} // namespace alloy::test
