#include "weights/shadow_map.h"

#include "host/symbols.h"

#include <algorithm>
#include <cstring>

namespace alloy::weights {
namespace {

// Repacks `plain` as a [blocks * block, rows] tensor of the layout and returns the packed bytes; empty when the host will not.
class repacker {
  public:
    repacker(host::buffer_type * type, const host::tensor & like, int64_t rows, int64_t blocks) : described_(like) {
        const auto & host = host::api();
        described_.buffer = nullptr;
        described_.data = nullptr;
        described_.extra = nullptr;
        described_.view_src = nullptr;
        described_.ne[0] = host.ggml_blck_size(like.type) * blocks;
        described_.ne[1] = rows;
        described_.ne[2] = described_.ne[3] = 1;
        described_.nb[1] = host.ggml_row_size(like.type, described_.ne[0]);
        described_.nb[2] = described_.nb[3] = described_.nb[1] * static_cast<size_t>(rows);
        bytes_ = described_.nb[3];
        buffer_ = host.ggml_backend_buft_alloc_buffer(type, host.ggml_backend_buft_get_alloc_size(type, &described_));
        if (buffer_ != nullptr)
            host.ggml_backend_tensor_alloc(buffer_, &described_, host.ggml_backend_buffer_get_base(buffer_));
    }
    ~repacker() {
        if (buffer_ != nullptr) host::api().ggml_backend_buffer_free(buffer_);
    }
    repacker(const repacker &) = delete;
    repacker & operator=(const repacker &) = delete;

    // `extra` is the host's choice of layout for this shape; it must be the one of the real weight.
    bool same_layout(const host::tensor & like) const { return buffer_ != nullptr && described_.extra == like.extra; }
    size_t bytes() const { return bytes_; }

    std::vector<uint8_t> pack(const std::vector<uint8_t> & plain) {
        host::api().ggml_backend_tensor_set(&described_, plain.data(), 0, bytes_);
        const auto * packed = static_cast<const uint8_t *>(described_.data);
        return {packed, packed + bytes_};
    }

  private:
    host::tensor described_;
    host::buffer * buffer_ = nullptr;
    size_t bytes_ = 0;
};

bool bit_of(const std::vector<uint8_t> & bytes, size_t i) { return (bytes[i / 8] >> (i % 8)) & 1; }

} // namespace

shadow_map::shadow_map(host::buffer_type * type, const host::tensor & like) {
    // Interleaves are powers of two up to 16 rows; 32 rows show where a strip ends.
    int64_t rows = 32;
    while (rows > 1 && like.ne[1] % rows != 0) rows /= 2;
    repacker probe(type, like, rows, 1);
    if (!probe.same_layout(like)) return;
    block_bytes_ = probe.bytes() / static_cast<size_t>(rows);

    const size_t bits = probe.bytes() * 8;
    const std::vector<uint8_t> constant = probe.pack(std::vector<uint8_t>(probe.bytes(), 0));
    std::vector<uint32_t> source(bits, 0);
    for (int j = 0; (size_t(1) << j) < bits; j++) {
        std::vector<uint8_t> plain(probe.bytes(), 0);
        for (size_t i = 0; i < bits; i++) {
            if ((i >> j) & 1) plain[i / 8] |= static_cast<uint8_t>(1u << (i % 8));
        }
        const std::vector<uint8_t> packed = probe.pack(plain);
        for (size_t o = 0; o < bits; o++) source[o] |= static_cast<uint32_t>(bit_of(packed, o) ^ bit_of(constant, o)) << j;
    }

    // The smallest strip that keeps its bits to itself.
    int64_t strip = 1;
    auto closed = [&](int64_t n) {
        const size_t limit = static_cast<size_t>(n) * block_bytes_ * 8;
        return std::all_of(source.begin(), source.begin() + static_cast<ptrdiff_t>(limit), [&](uint32_t i) { return i < limit; });
    };
    while (strip < rows && !closed(strip)) strip *= 2;
    source_bit_.assign(source.begin(), source.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(strip) * block_bytes_ * 8));
    constant_.assign(constant.begin(), constant.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(strip) * block_bytes_));

    std::vector<bool> hit(source_bit_.size(), false);
    for (uint32_t i : source_bit_) {
        if (i >= hit.size() || hit[i]) return; // not a permutation: no inverse
        hit[i] = true;
    }

    // The proof: random bytes, more blocks and strips than the probe had.
    repacker check(type, like, rows, 3);
    if (!check.same_layout(like)) return;
    std::vector<uint8_t> plain(check.bytes());
    uint32_t state = 12345;
    for (uint8_t & byte : plain) byte = static_cast<uint8_t>((state = state * 1664525u + 1013904223u) >> 24);
    const std::vector<uint8_t> packed = check.pack(plain);
    std::vector<uint8_t> back(check.bytes());
    rows_ = strip;
    for (int64_t first = 0; first < rows; first += strip) {
        unpack_strip(packed.data(), first, 3, back.data() + static_cast<size_t>(first) * 3 * block_bytes_);
    }
    if (back != plain) rows_ = 0;
}

void shadow_map::unpack_strip(const uint8_t * packed, int64_t first, int64_t blocks, uint8_t * plain) const {
    const size_t strip_bytes = static_cast<size_t>(rows_) * block_bytes_;
    const size_t row_bytes = static_cast<size_t>(blocks) * block_bytes_;
    std::memset(plain, 0, row_bytes * static_cast<size_t>(rows_));
    for (int64_t x = 0; x < blocks; x++) {
        const uint8_t * from = packed + (static_cast<size_t>(first / rows_) * static_cast<size_t>(blocks) + static_cast<size_t>(x)) * strip_bytes;
        for (size_t o = 0; o < strip_bytes * 8; o++) {
            if ((((from[o / 8] ^ constant_[o / 8]) >> (o % 8)) & 1) == 0) continue;
            const size_t i = source_bit_[o], byte = i / 8;
            plain[byte / block_bytes_ * row_bytes + static_cast<size_t>(x) * block_bytes_ + byte % block_bytes_] |=
                static_cast<uint8_t>(1u << (i % 8));
        }
    }
}

} // namespace alloy::weights
