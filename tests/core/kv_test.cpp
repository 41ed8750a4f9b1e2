// The KV store by itself: pages of the arena, and one cache tensor against a plain array.
#include "kv_scene.h"

#include <algorithm>
#include <set>
#include <thread>

namespace alloy::test {
namespace {

kv::policy sealing(kv_codec codec, int64_t window = 0) { return {true, window, codec, codec, ""}; }
const kv::policy exact{};

// Whether pages are smaller than rows.
bool saves(const cache_shape & shape, kv_codec codec) {
    return kv_codec_page_bytes(codec, shape.d) < block * static_cast<int64_t>(host::api().ggml_row_size(shape.type, shape.d));
}

constexpr kv_codec codecs[] = {kv_codec::i8, kv_codec::z6, kv_codec::n5, kv_codec::n4, kv_codec::n3};

class Kv : public ::testing::Test {
  protected:
    void SetUp() override {
        fake::reset();
        fake::connect();
        live_ = value_of(counter::kv_live_bytes), sealed_ = value_of(counter::kv_sealed_bytes), saved_ = value_of(counter::kv_saved_bytes);
    }
    void TearDown() override { // every scene is gone
        EXPECT_EQ(live(), 0u);
        EXPECT_EQ(sealed(), 0u);
        EXPECT_EQ(saved(), 0u);
    }
    uint64_t live() const { return value_of(counter::kv_live_bytes) - live_; }
    uint64_t sealed() const { return value_of(counter::kv_sealed_bytes) - sealed_; }
    uint64_t saved() const { return value_of(counter::kv_saved_bytes) - saved_; }

    std::mt19937_64 engine{seed()};

  private:
    uint64_t live_ = 0, sealed_ = 0, saved_ = 0;
};

// --- arena ---------------------------------------------------------------------------------------------------------------------------

constexpr size_t extent = kv::page_arena::extent_bytes;

TEST_F(Kv, PagesAreApartAlignedAndComeBack) {
    kv::page_arena arena;
    std::vector<std::pair<uint8_t *, size_t>> pages;
    std::set<uintptr_t> starts;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 400; i++) {
            const size_t bytes = (i % 3 == 0 ? 4224 : i % 3 == 1 ? 64 : 36992);
            uint8_t * page = arena.take(bytes);
            ASSERT_NE(page, nullptr);
            EXPECT_EQ(reinterpret_cast<uintptr_t>(page) % 64, 0u);
            std::memset(page, i & 0xff, bytes);
            pages.push_back({page, bytes});
        }
        std::shuffle(pages.begin(), pages.end(), engine);
        while (pages.size() > 150u * static_cast<size_t>(2 - round)) {
            arena.give_back(pages.back().first, pages.back().second);
            pages.pop_back();
        }
        std::vector<std::pair<uintptr_t, size_t>> sorted;
        for (const auto & [page, bytes] : pages) sorted.push_back({reinterpret_cast<uintptr_t>(page), bytes});
        std::sort(sorted.begin(), sorted.end());
        for (size_t i = 1; i < sorted.size(); i++) EXPECT_LE(sorted[i - 1].first + sorted[i - 1].second, sorted[i].first);
    }
}

TEST_F(Kv, FreedPagesAreUsedBeforeNewMemory) {
    kv::page_arena arena;
    uint8_t *keep = arena.take(4096), *freed = arena.take(4096);
    arena.give_back(freed, 4096);
    EXPECT_EQ(arena.take(4096), freed);
    arena.give_back(freed, 4096);
    arena.give_back(keep, 4096);
    EXPECT_FALSE(is_mapped(keep));
}

TEST_F(Kv, EmptyExtentsGoBackAndUntouchedMemoryIsNotTaken) {
    kv::page_arena arena;
    constexpr size_t bytes = 16512, in_extent = (extent - 64) / bytes;
    std::vector<uint8_t *> pages;
    for (size_t i = 0; i < 3 * in_extent + 1; i++) {
        pages.push_back(arena.take(bytes));
        std::memset(pages.back(), 1, bytes);
    }
    auto extent_of = [](const uint8_t * p) { return reinterpret_cast<uint8_t *>(reinterpret_cast<uintptr_t>(p) / extent * extent); };
    std::set<uint8_t *> extents;
    for (uint8_t * p : pages) extents.insert(extent_of(p));
    EXPECT_EQ(extents.size(), 4u);
    EXPECT_FALSE(is_resident(extent_of(pages.back()) + extent - os::page_bytes())); // one page was taken from the last
    // Of one extent all pages, of the others all but one.
    std::vector<uint8_t *> kept;
    for (uint8_t * e : extents) {
        if (e != extent_of(pages.front())) kept.push_back(*std::find_if(pages.begin(), pages.end(), [&](uint8_t * p) { return extent_of(p) == e; }));
    }
    std::shuffle(pages.begin(), pages.end(), engine);
    for (uint8_t * p : pages) {
        if (std::find(kept.begin(), kept.end(), p) == kept.end()) arena.give_back(p, bytes);
    }
    int64_t still_there = 0;
    for (uint8_t * e : extents) still_there += is_mapped(e);
    EXPECT_EQ(still_there, 3);
    for (uint8_t * p : kept) arena.give_back(p, bytes);
    for (uint8_t * e : extents) EXPECT_FALSE(is_mapped(e));
}

TEST_F(Kv, ArenaServesThreads) {
    kv::page_arena arena;
    std::vector<std::thread> threads;
    std::atomic<int> wrong{0};
    for (int t = 0; t < 4; t++) {
        threads.emplace_back([&, t] {
            std::mt19937 mine(static_cast<unsigned>(t));
            std::vector<std::pair<uint8_t *, size_t>> pages;
            for (int i = 0; i < 3000; i++) {
                if (pages.size() < 40 || mine() % 2) {
                    const size_t bytes = mine() % 2 ? 4224 : 2176;
                    pages.push_back({arena.take(bytes), bytes});
                    std::memset(pages.back().first, t, bytes);
                } else {
                    std::swap(pages[mine() % pages.size()], pages.back());
                    const auto [page, bytes] = pages.back();
                    wrong += !std::all_of(page, page + bytes, [&](uint8_t b) { return b == t; });
                    arena.give_back(page, bytes);
                    pages.pop_back();
                }
            }
            for (const auto & [page, bytes] : pages) arena.give_back(page, bytes);
        });
    }
    for (auto & t : threads) t.join();
    EXPECT_EQ(wrong, 0);
}

// --- sealing ---------------------------------------------------------------------------------------------------------------------------

const cache_shape shapes[] = {
    {host::type_f16, 64, 2, 512, 1},
    {host::type_f16, 96, 1, 256, 2},
    {host::type_f32, 32, 3, 256, 2},
    {type_q8_0, 32, 1, 512, 1}, // several blocks in a page of memory
    {type_q8_0, 64, 3, 256, 2}, // blocks that share pages of memory with their neighbours
};

// What a few cycles may change: nothing through f32 and f16. The 8 bits of q8_0 are rounded the same way in each cycle, and move the scale by
// some 0.1 % each time.
double drift(const cache_shape & shape) { return shape.type == type_q8_0 ? 1e-3 : 0; }

TEST_F(Kv, RowsComeBackWithinTheCodecsError) {
    for (const cache_shape & shape : shapes) {
        for (const kv_codec codec : codecs) {
            if (!saves(shape, codec)) continue;
            SCOPED_TRACE(shape.name() + " " + traits_of_codecs[static_cast<int>(codec)].name);
            cache_scene s(shape, sealing(codec));
            s.view();
            const bytes_t rows = s.random_rows(shape.cells * shape.streams, engine);
            s.set_rows(0, rows);
            EXPECT_EQ(s.read_all(), rows);
            EXPECT_EQ(live(), shape.bytes());
            ASSERT_TRUE(s.cache->has_sealable());
            s.cache->seal();
            EXPECT_EQ(s.num_sealed(), shape.blocks());
            EXPECT_FALSE(s.cache->has_sealable());
            const double loss = s.loss(rows, s.read_all());
            EXPECT_LE(loss, loss_of(codec));
            s.check_view();
            const auto page_bytes = static_cast<size_t>(kv_codec_page_bytes(codec, shape.d) * shape.heads * shape.blocks());
            EXPECT_EQ(live(), page_bytes + static_cast<size_t>(shape.d * shape.heads) * sizeof(float)); // with the means of keys
            EXPECT_EQ(sealed(), page_bytes);
            EXPECT_EQ(saved(), shape.bytes() - page_bytes);
            if (shape.block_bytes() % os::page_bytes() == 0) {
                for (int64_t b = 0; b < shape.blocks(); b++) EXPECT_FALSE(s.has_memory(b)) << b;
            }
        }
    }
}

TEST_F(Kv, OnlyFullOldBlocksWithoutSinksAreSealed) {
    cache_scene s({host::type_f16, 64, 1, 512, 1}, sealing(kv_codec::i8, 100));
    EXPECT_FALSE(s.cache->has_sealable());
    s.set_rows(0, s.random_rows(300, engine), true);
    EXPECT_FALSE(s.cache->has_sealable()); // heads are not known
    s.view();
    s.cache->seal();
    for (int64_t b = 0; b < 8; b++) EXPECT_EQ(s.is_sealed(b), b >= 1 && b <= 2) << b; // 0: sinks; 3: 44 rows old
    s.set_rows(300, s.random_rows(55, engine), true);
    EXPECT_FALSE(s.cache->has_sealable()); // 99 old
    s.set_rows(355, s.random_rows(1, engine), true);
    EXPECT_TRUE(s.cache->has_sealable());
    s.cache->seal();
    EXPECT_TRUE(s.is_sealed(3));
    s.set_rows({0, 1, 2, 3}, s.random_rows(4, engine), {356, 357, 358, 359}); // no sinks any more
    s.set_rows(360, s.random_rows(100, engine), true);
    s.cache->seal();
    EXPECT_TRUE(s.is_sealed(0));
}

TEST_F(Kv, EachSequenceKeepsItsRecentRows) {
    cache_scene s({host::type_f16, 64, 1, 512, 1}, sealing(kv_codec::i8, 64));
    s.view();
    std::vector<int64_t> cells(256);
    std::vector<int32_t> positions(256);
    for (size_t i = 0; i < cells.size(); i++) cells[i] = static_cast<int64_t>(i), positions[i] = static_cast<int32_t>(10 + i % 128); // two of 128 tokens
    s.set_rows(cells, s.random_rows(256, engine), positions);
    s.cache->seal();
    for (int64_t b = 0; b < 4; b++) EXPECT_EQ(s.is_sealed(b), b % 2 == 0) << b;
    for (int64_t i = 0; i < 200; i++) { // one rests
        s.set_rows({256 + i}, s.random_rows(1, engine), std::vector<int32_t>{static_cast<int32_t>(138 + i)});
    }
    s.cache->seal();
    EXPECT_EQ(s.is_sealed(1) + s.is_sealed(3), 1);
}

// As a state comes back into cells that others left: row after row, in places.
TEST_F(Kv, RestoredRowsKeepTheirSinksAndTheirRecentOnes) {
    const cache_shape shape{host::type_f16, 64, 1, 512, 1};
    cache_scene s(shape, sealing(kv_codec::n5, 64));
    s.view();
    s.set_rows(0, s.random_rows(512, engine));
    s.cache->seal();
    EXPECT_EQ(s.num_sealed(), 7);
    const bytes_t rows = s.random_rows(256, engine);
    const auto restore = [&](int64_t first, int64_t at) {
        const auto * row = rows.data() + static_cast<size_t>(first) * shape.row_bytes();
        s.write(static_cast<size_t>(at) * shape.row_bytes(), bytes_t(row, row + shape.row_bytes()));
    };
    for (int64_t i = 0; i < 256; i++) restore(i, i < 4 ? 60 + i : 64 + i); // the sinks lie by themselves
    s.cache->seal();
    for (int64_t b = 0; b < 5; b++) EXPECT_EQ(s.is_sealed(b), b == 1 || b == 2 || b == 3) << b;
    EXPECT_EQ(s.read(60 * shape.row_bytes(), 4 * shape.row_bytes()), bytes_t(rows.begin(), rows.begin() + 4 * static_cast<ptrdiff_t>(shape.row_bytes())));
}

TEST_F(Kv, StreamsAgeByThemselves) {
    cache_scene s({host::type_f16, 64, 1, 128, 2}, sealing(kv_codec::i8, 64));
    s.view();
    s.set_rows(128, s.random_rows(128, engine));
    s.set_rows(0, s.random_rows(64, engine));
    s.cache->seal();
    EXPECT_FALSE(s.is_sealed(0));
    EXPECT_TRUE(s.is_sealed(2));
    EXPECT_FALSE(s.is_sealed(3));
}

TEST_F(Kv, WritesToASealedBlockDropOrOpenIt) {
    for (const cache_shape & shape : shapes) {
        SCOPED_TRACE(shape.name());
        cache_scene s(shape, sealing(kv_codec::n4));
        s.view();
        s.set_rows(0, s.random_rows(256, engine));
        s.cache->seal();
        const uint64_t opened = value_of(counter::kv_opened_pages);
        const bytes_t before = s.read(0, 4 * shape.block_bytes());
        const bytes_t whole = s.random_rows(64, engine), part = s.random_rows(3, engine);
        s.set_rows(64, whole); // dropped
        EXPECT_EQ(value_of(counter::kv_opened_pages), opened);
        s.set_rows({130, 133, 191}, part);
        EXPECT_EQ(value_of(counter::kv_opened_pages), opened + static_cast<uint64_t>(shape.heads));
        bytes_t wanted = before;
        std::copy(whole.begin(), whole.end(), wanted.begin() + static_cast<std::ptrdiff_t>(shape.block_bytes()));
        const size_t row = shape.row_bytes();
        for (size_t i = 0; i < 3; i++) std::copy_n(part.begin() + i * row, row, wanted.begin() + std::vector<size_t>{130, 133, 191}[i] * row);
        EXPECT_EQ(s.read(0, 4 * shape.block_bytes()), wanted);
        EXPECT_FALSE(s.is_sealed(1));
        EXPECT_FALSE(s.is_sealed(2));
        EXPECT_TRUE(s.is_sealed(3));
        s.cache->seal();
        EXPECT_EQ(s.num_sealed(), 4);
        // Cells that were not written keep their codes.
        const bytes_t after = s.read(0, 4 * shape.block_bytes());
        for (size_t cell = 0; cell < 256; cell++) {
            if ((cell >= 64 && cell < 128) || cell == 130 || cell == 133 || cell == 191) continue;
            ASSERT_LE(s.loss({before.begin() + cell * row, before.begin() + (cell + 1) * row}, {after.begin() + cell * row, after.begin() + (cell + 1) * row}),
                      drift(shape)) << cell;
        }
    }
}

TEST_F(Kv, ByteRangesThatCutRowsAreWritten) {
    for (const kv::policy & p : {sealing(kv_codec::i8), exact}) {
        cache_scene s({host::type_f16, 64, 2, 256, 1}, p);
        s.view();
        s.set_rows(0, s.random_rows(256, engine));
        s.cache->seal();
        bytes_t wanted = s.read_all();
        for (const auto & [offset, bytes] : {std::pair<size_t, size_t>{256 * 64 - 6, 12}, {2, 2}, {256 * 10 + 2, 256 * 100}, {256 * 256 - 2, 2}}) {
            const bytes_t numbers = s.random_rows(1 + static_cast<int64_t>(bytes / 256), engine);
            const bytes_t piece(numbers.begin(), numbers.begin() + static_cast<std::ptrdiff_t>(bytes));
            s.write(offset, piece);
            std::copy(piece.begin(), piece.end(), wanted.begin() + static_cast<std::ptrdiff_t>(offset));
            EXPECT_EQ(s.read(offset / 256 * 256, 256).size(), 256u);
            if (!p.lossy) {
                EXPECT_EQ(s.read_all(), wanted);
                continue;
            }
            EXPECT_LE(s.loss(wanted, s.read_all()), 2 * loss_of(kv_codec::i8));
            wanted = s.read_all();
        }
    }
}

TEST_F(Kv, SealingAgainChangesNothing) {
    for (const cache_shape & shape : shapes) {
        for (const kv_codec codec : codecs) {
            if (!saves(shape, codec)) continue;
            SCOPED_TRACE(shape.name() + " " + traits_of_codecs[static_cast<int>(codec)].name);
            cache_scene s(shape, sealing(codec));
            s.view();
            s.set_rows(0, s.random_rows(shape.cells * shape.streams, engine));
            s.cache->seal();
            bytes_t first = s.read_all();
            for (int cycle = 0; cycle < (shape.type == type_q8_0 ? 4 : 20); cycle++) {
                s.cache->open_share(0, 1);
                ASSERT_EQ(s.num_sealed(), 0);
                s.cache->seal_share(0, 1);
                ASSERT_EQ(s.num_sealed(), shape.blocks());
                ASSERT_LE(s.loss(first, s.read_all()), drift(shape)) << "cycle " << cycle;
            }
        }
    }
}

// A save and a restore may land in other cells, so that other rows share a page. Values keep their codes; keys are encoded again where they meet
// another mean.
TEST_F(Kv, RestoringIntoOtherCellsChangesNothing) {
    for (const cache_shape & shape : shapes) {
        for (const kv_codec codec : codecs) {
            if (!saves(shape, codec)) continue;
            SCOPED_TRACE(shape.name() + " " + traits_of_codecs[static_cast<int>(codec)].name);
            cache_scene a(shape, sealing(codec), true), b(shape, sealing(codec), true), keys(shape, sealing(codec));
            a.view();
            b.view();
            keys.view();
            a.set_rows(0, a.random_rows(shape.cells, engine));
            a.cache->seal();
            const size_t row = shape.row_bytes(), rows = static_cast<size_t>(shape.cells) - 40;
            const bytes_t saved = a.read(0, rows * row);
            for (const size_t shift : {1, 17, 40}) {
                b.write(shift * row, saved);
                EXPECT_GT(b.num_sealed(), 0);
                ASSERT_LE(b.loss(saved, b.read(shift * row, saved.size())), drift(shape)) << "shifted by " << shift;
                a.write(0, b.read(shift * row, saved.size()));
                ASSERT_LE(a.loss(saved, a.read(0, saved.size())), drift(shape));
                keys.write(shift * row, saved);
                EXPECT_GT(keys.num_sealed(), 0);
                ASSERT_LE(keys.loss(saved, keys.read(shift * row, saved.size())), loss_of(codec)) << "keys shifted by " << shift;
            }
        }
    }
}

// Keys that come back to their cells keep their codes too: the mean of what is decoded is nearly the one that was taken before.
TEST_F(Kv, RestoringKeysIntoTheirCellsChangesTheirMeanAtMost) {
    const cache_shape shape{host::type_f16, 64, 2, 1024, 1};
    for (const kv_codec codec : codecs) {
        SCOPED_TRACE(traits_of_codecs[static_cast<int>(codec)].name);
        cache_scene a(shape, sealing(codec)), b(shape, sealing(codec));
        a.view();
        b.view();
        bytes_t rows = a.random_rows(shape.cells, engine);
        for (int64_t i = 0; i < shape.cells * shape.d * shape.heads; i++) { // channels with something in common
            const uint16_t common[] = {0x4400, 0xC600}; // 4, -6
            if (i % shape.d < 2) std::memcpy(rows.data() + 2 * i, common + i % 2, 2);
        }
        a.set_rows(0, rows, true);
        a.cache->seal();
        const bytes_t saved = a.read_all();
        EXPECT_LE(a.loss(rows, saved), loss_of(codec) * 0.7); // of rows with 1.8 times the energy
        b.write(0, saved);
        EXPECT_EQ(b.num_sealed(), shape.blocks() - 1); // but for the sinks' block
        const bytes_t restored = b.read_all();
        EXPECT_LE(b.loss(saved, restored), loss_of(codec) / 16);
        a.cache->clear();
        a.write(0, restored);
        EXPECT_LE(a.loss(restored, a.read_all()), loss_of(codec) / 16);
    }
}

// A server moves the states of its slots about; neighbours there have other means.
TEST_F(Kv, KeysThatMoveFromCellToCellKeepTheirCodes) {
    const cache_shape shape{host::type_f16, 64, 2, 4096, 1};
    const size_t row = shape.row_bytes();
    for (const kv_codec codec : codecs) {
        SCOPED_TRACE(traits_of_codecs[static_cast<int>(codec)].name);
        cache_scene s(shape, sealing(codec));
        s.view();
        const auto rows_around = [&](uint16_t common, int64_t n) {
            bytes_t rows = s.random_rows(n, engine);
            for (int64_t i = 0; i < n * shape.d * shape.heads; i += 8) std::memcpy(rows.data() + 2 * i, &common, 2);
            return rows;
        };
        s.set_rows(0, rows_around(0xC600, shape.cells)); // -6
        s.cache->seal();
        const bytes_t rows = rows_around(0x4400, 512); // 4
        s.set_rows(0, rows);
        s.cache->seal();
        const bytes_t saved = s.read(0, rows.size());
        EXPECT_GT(s.loss(rows, saved), loss_of(codec) / 8);
        bytes_t moved = saved;
        for (size_t i = 1; i <= 10; i++) {
            const size_t to = 320 * i * row; // whole blocks: those that others share cannot have the means of both
            s.write(to, moved);
            s.cache->seal();
            moved = s.read(to, moved.size());
        }
        EXPECT_LE(s.loss(saved, moved), loss_of(codec) / 16);
    }
}

TEST_F(Kv, RestoredSequencesKeepTheirSinks) {
    cache_scene s({host::type_f16, 64, 1, 512, 1}, sealing(kv_codec::i8));
    s.view();
    const size_t row = s.shape.row_bytes();
    s.write(0, s.random_rows(256, engine));
    EXPECT_FALSE(s.is_sealed(0));
    for (int64_t b = 1; b < 4; b++) EXPECT_TRUE(s.is_sealed(b)) << b;
    for (int64_t cell = 256; cell < 512; cell += 8) s.write(static_cast<size_t>(cell) * row, s.random_rows(8, engine)); // pieces of a sequence
    for (int64_t b = 4; b < 8; b++) EXPECT_TRUE(s.is_sealed(b)) << b;
    s.set_rows(511, s.random_rows(1, engine));     // a graph: what follows is of another sequence
    s.write(62 * row, s.random_rows(100, engine)); // 62, 63 in block 0; 64, 65 in block 1
    EXPECT_FALSE(s.is_sealed(0));
    EXPECT_FALSE(s.is_sealed(1));
}

TEST_F(Kv, StateIsSealedWhileItIsRestored) {
    cache_scene s({host::type_f16, 64, 1, 4096, 1}, sealing(kv_codec::n4));
    s.view();
    s.write(0, s.random_rows(4096, engine));
    EXPECT_EQ(s.num_sealed(), 63);
    for (int64_t b = 1; b < 64; b++) EXPECT_FALSE(s.has_memory(b)) << b;
}

// --- what cannot be sealed -----------------------------------------------------------------------------------------------------------------

TEST_F(Kv, RowsThatAreNotFiniteStayAsTheyAre) {
    for (const uint16_t bits : {uint16_t(0x7C00), uint16_t(0xFC00), uint16_t(0x7E01)}) {
        cache_scene s({host::type_f16, 64, 2, 256, 1}, sealing(kv_codec::n5));
        s.view();
        bytes_t rows = s.random_rows(256, engine);
        std::memcpy(rows.data() + 100 * 256 + 130, &bits, 2); // the second head
        const uint64_t unsealable = value_of(counter::kv_unsealable_blocks);
        s.set_rows(0, rows);
        s.cache->seal();
        EXPECT_EQ(s.num_sealed(), 3);
        EXPECT_FALSE(s.is_sealed(1));
        EXPECT_EQ(s.read_block(1), bytes_t(rows.begin() + 64 * 256, rows.begin() + 128 * 256));
        EXPECT_EQ(value_of(counter::kv_unsealable_blocks), unsealable + 1);
        EXPECT_FALSE(s.cache->has_sealable()); // not tried again and again
        s.check_view();
        s.set_rows(100, s.random_rows(1, engine));
        s.cache->seal();
        EXPECT_EQ(s.num_sealed(), 4);
    }
}

TEST_F(Kv, HeadsThatNoCodecFitsStayRows) {
    for (const cache_shape & shape : {cache_shape{host::type_f16, 80, 2, 256, 1}, cache_shape{host::type_f16, 48, 1, 256, 1}}) {
        cache_scene s(shape, sealing(kv_codec::i8));
        const bytes_t rows = s.random_rows(256, engine);
        s.set_rows(0, rows);
        EXPECT_FALSE(s.view().may_be_sealed);
        EXPECT_TRUE(s.cache->is_plain());
        EXPECT_FALSE(s.cache->has_sealable());
        s.cache->seal();
        EXPECT_EQ(s.read_all(), rows);
    }
    cache_scene odd({host::type_f16, 64, 1, 100, 1}, sealing(kv_codec::i8)); // no whole blocks
    EXPECT_TRUE(odd.cache->is_plain());
    const bytes_t rows = odd.random_rows(100, engine);
    odd.write(0, rows);
    EXPECT_EQ(odd.read_all(), rows);
}

TEST_F(Kv, CachesThatSealingWouldNotMakeSmallerStayRows) {
    cache_scene same({type_q8_0, 32, 1, 256, 1}, sealing(kv_codec::i8)), smaller({type_q8_0, 64, 1, 256, 1}, sealing(kv_codec::i8));
    EXPECT_FALSE(same.view().may_be_sealed);
    EXPECT_TRUE(smaller.view().may_be_sealed);
}

TEST_F(Kv, ViewsThatEndWithinABlockAreReadAsRows) {
    cache_scene s({host::type_f16, 64, 2, 256, 1}, sealing(kv_codec::i8));
    s.view();
    s.set_rows(0, s.random_rows(256, engine));
    s.cache->seal();
    const kv::kv_view v = s.cache->view(s.heads(100)); // kernels read sealed pages as a whole
    EXPECT_FALSE(v.may_be_sealed);
    EXPECT_EQ(v.cells, 100);
}

TEST_F(Kv, AnotherViewOfTheHeadsMakesItPlain) {
    cache_scene s({host::type_f16, 64, 2, 256, 1}, sealing(kv_codec::i8));
    const kv::kv_view before = s.view();
    s.set_rows(0, s.random_rows(256, engine));
    s.cache->seal();
    const bytes_t rows = s.read_all();
    host::tensor other = s.heads(256);
    other.ne[0] = 128, other.ne[2] = 1;
    EXPECT_FALSE(s.cache->view(other).may_be_sealed);
    EXPECT_EQ(s.read_all(), rows);
    for (int64_t b = 0; b < 4; b++) EXPECT_EQ(before.of(0, 1).pages[b].data, s.rows_of(b) + 128); // plans that were made before
    EXPECT_EQ(live(), s.shape.bytes());
}

TEST_F(Kv, PlainCachesHoldTheirRows) {
    for (const cache_shape & shape : shapes) {
        cache_scene s(shape, sealing(kv_codec::n5));
        s.view();
        s.set_rows(0, s.random_rows(shape.cells * shape.streams, engine));
        s.cache->seal();
        const bytes_t rows = s.read_all();
        s.cache->keep_plain("test");
        EXPECT_EQ(std::memcmp(s.rows_of(0), rows.data(), rows.size()), 0);
        EXPECT_EQ(s.read_all(), rows);
        EXPECT_EQ(live(), shape.bytes());
        EXPECT_EQ(sealed(), 0u);
        s.set_rows(0, s.random_rows(64, engine));
        EXPECT_FALSE(s.cache->has_sealable());
        s.cache->open_share(0, 1);
        s.cache->seal_share(0, 1);
        EXPECT_EQ(s.num_sealed(), 0);
    }
}

// A graph may be aborted after caches were opened and before they were closed.
TEST_F(Kv, OpenedCachesThatWereNotClosedAreSealedLater) {
    cache_scene s(shapes[0], sealing(kv_codec::i8));
    s.view();
    s.set_rows(0, s.random_rows(512, engine));
    s.cache->seal();
    const bytes_t rows = s.read_all();
    s.cache->open_share(0, 1);
    EXPECT_EQ(s.read_all(), rows);
    s.set_rows(0, bytes_t(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(s.shape.row_bytes())));
    s.cache->seal();
    EXPECT_EQ(s.num_sealed(), 8);
    EXPECT_EQ(s.read_all(), rows);
}

TEST_F(Kv, OpenedCachesThatWereNotClosedMayBecomePlain) {
    cache_scene s(shapes[0], sealing(kv_codec::i8));
    s.view();
    s.set_rows(0, s.random_rows(512, engine));
    s.cache->seal();
    const bytes_t rows = s.read_all();
    s.cache->open_share(0, 1);
    s.cache->keep_plain("test");
    s.cache->seal_share(0, 1);
    EXPECT_EQ(std::memcmp(s.rows_of(0), rows.data(), rows.size()), 0);
}

// --- memory goes back ------------------------------------------------------------------------------------------------------------------

TEST_F(Kv, ClearGivesEverythingBack) {
    for (const cache_shape & shape : shapes) {
        for (const kv::policy & p : {sealing(kv_codec::n4, 64), exact}) {
            cache_scene s(shape, p);
            s.view();
            s.set_rows(0, s.random_rows(shape.cells * shape.streams, engine));
            s.cache->seal();
            EXPECT_GT(live(), 0u);
            s.cache->clear();
            EXPECT_EQ(live(), 0u);
            EXPECT_EQ(sealed(), 0u);
            EXPECT_EQ(s.num_sealed(), 0);
            for (int64_t b = 1; b + 1 < shape.blocks() && shape.block_bytes() % os::page_bytes() == 0; b++) EXPECT_FALSE(s.has_memory(b)) << b;
            EXPECT_EQ(s.read_all(), bytes_t(shape.bytes(), 0));
            s.check_view();
        }
    }
}

TEST_F(Kv, BlocksAreSealedAfterAClear) {
    cache_scene s({host::type_f16, 64, 2, 512, 1}, sealing(kv_codec::i8, 128));
    s.view();
    s.set_rows(0, s.random_rows(128, engine));
    s.cache->clear();
    s.set_rows(0, s.random_rows(512, engine));
    s.cache->seal();
    EXPECT_EQ(s.num_sealed(), 6);
}

TEST_F(Kv, TrimDropsWhatLiesBeyond) {
    for (const cache_shape & shape : shapes) {
        SCOPED_TRACE(shape.name());
        cache_scene s(shape, sealing(kv_codec::n4, 64));
        s.view();
        s.set_rows(0, s.random_rows(shape.cells * shape.streams, engine));
        s.cache->seal();
        const bytes_t rows = s.read_all();
        const size_t kept = 128 * shape.row_bytes(), stream = static_cast<size_t>(shape.cells) * shape.row_bytes();
        s.cache->trim(0, 100); // cuts block 1, which stays
        EXPECT_EQ(s.read(0, kept), bytes_t(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(kept)));
        for (int64_t b = 2; b < shape.cells / block; b++) {
            EXPECT_FALSE(s.is_sealed(b));
            EXPECT_FALSE(shape.block_bytes() % os::page_bytes() == 0 && s.has_memory(b));
        }
        EXPECT_EQ(s.read(stream, rows.size() - stream), bytes_t(rows.begin() + static_cast<std::ptrdiff_t>(stream), rows.end()));
        s.check_view();
        const bytes_t again = s.random_rows(shape.cells, engine);
        s.set_rows(0, again);
        EXPECT_EQ(s.read(0, stream), again);
        s.cache->seal();
        EXPECT_LE(s.loss(again, s.read(0, stream)), loss_of(kv_codec::n4) + 1e-3);
    }
}

// Blocks that are no whole pages of memory: what goes back must not take rows of others along.
TEST_F(Kv, RaggedNeighboursKeepTheirRows) {
    for (const cache_shape & shape : {cache_shape{type_q8_0, 32, 1, 512, 1}, cache_shape{type_q8_0, 64, 3, 512, 1}, cache_shape{type_q8_0, 32, 3, 512, 1}}) {
        for (uint64_t present = 1; present < 256; present += 3) {
            cache_scene s(shape, sealing(kv_codec::n4));
            s.view();
            std::vector<bytes_t> rows(8);
            for (int64_t b = 0; b < 8; b++) {
                if (present >> b & 1) s.set_rows(b * 64, rows[static_cast<size_t>(b)] = s.random_rows(63, engine)); // not full: not sealed
            }
            for (int64_t b = 0; b < 8; b++) {
                if (present >> b & 1) continue;
                s.set_rows(b * 64, s.random_rows(64, engine));
                s.cache->seal();
                ASSERT_TRUE(s.is_sealed(b));
            }
            for (int64_t b = 0; b < 8; b++) {
                const bytes_t & wanted = rows[static_cast<size_t>(b)];
                if (wanted.empty()) continue;
                ASSERT_EQ(s.read(static_cast<size_t>(b) * shape.block_bytes(), wanted.size()), wanted) << shape.name() << " blocks " << present << " block " << b;
            }
        }
    }
}

// --- copies ------------------------------------------------------------------------------------------------------------------------------

TEST_F(Kv, WholeBlocksAreCopiedAsTheyAre) {
    for (const cache_shape & shape : shapes) {
        SCOPED_TRACE(shape.name());
        cache_scene a(shape, sealing(kv_codec::n4, 16)), b(shape, sealing(kv_codec::n4, 16));
        a.view();
        b.view();
        a.set_rows(0, a.random_rows(150, engine), true); // sinks, sealed, part
        a.cache->seal();
        ASSERT_EQ(a.num_sealed(), 1);
        const bytes_t rows = a.read(0, 150 * shape.row_bytes());
        b.set_rows(0, b.random_rows(256, engine));
        b.cache->seal();
        ASSERT_TRUE(b.cache->copy_from(*a.cache, 0, 0, 4 * shape.block_bytes()));
        EXPECT_EQ(b.read(0, rows.size()), rows);
        EXPECT_FALSE(b.is_sealed(0));
        EXPECT_TRUE(b.is_sealed(1));
        EXPECT_FALSE(b.is_sealed(3)); // nothing was there
        b.check_view();
        a.cache->clear();
        EXPECT_EQ(b.read(0, rows.size()), rows);
        b.set_rows(150, b.random_rows(106, engine));
        b.cache->seal();
        EXPECT_FALSE(b.is_sealed(0)); // the sinks were copied too
        EXPECT_TRUE(b.is_sealed(2));
    }
}

TEST_F(Kv, CopiesWithinOneTensorMayOverlap) {
    const cache_shape shape{host::type_f16, 64, 1, 512, 1};
    const size_t row = shape.row_bytes(), blocks = shape.block_bytes();
    for (const auto & [from, to, bytes] : {std::tuple<size_t, size_t, size_t>{0, blocks, 4 * blocks}, {2 * blocks, 0, 5 * blocks}, {row, 5 * row, 200 * row},
                                           {9 * row, 2 * row, 300 * row}, {blocks, blocks, 3 * blocks}, {0, 3 * blocks + row, 100 * row}}) {
        for (const kv::policy & p : {sealing(kv_codec::i8, 100), exact}) {
            cache_scene s(shape, p);
            s.view();
            s.set_rows(0, s.random_rows(450, engine));
            s.cache->seal();
            bytes_t wanted = s.read_all();
            std::memmove(wanted.data() + to, wanted.data() + from, bytes);
            ASSERT_TRUE(s.cache->copy_from(*s.cache, from, to, bytes));
            const size_t known = 448 * row; // the rest of block 7 was never written
            EXPECT_LE(s.loss(bytes_t(wanted.begin(), wanted.begin() + static_cast<std::ptrdiff_t>(known)), s.read(0, known)), p.lossy ? loss_of(kv_codec::i8) : 0);
            s.check_view();
        }
    }
}

TEST_F(Kv, CopiesGoFromStreamToStreamAndBetweenUnlikeCaches) {
    const cache_shape shape{host::type_f16, 64, 2, 256, 3};
    const size_t stream = 256 * shape.row_bytes();
    cache_scene s(shape, sealing(kv_codec::n5)), unknown(shape, sealing(kv_codec::n5)), plain(shape, exact);
    s.view();
    const bytes_t rows = s.random_rows(256, engine);
    s.set_rows(0, rows);
    s.cache->seal();
    const bytes_t kept = s.read(0, stream);
    ASSERT_TRUE(s.cache->copy_from(*s.cache, 0, 2 * stream, stream));
    EXPECT_EQ(s.read(2 * stream, stream), kept);
    EXPECT_EQ(s.num_sealed(), 8);
    ASSERT_TRUE(unknown.cache->copy_from(*s.cache, 2 * stream, stream, stream)); // whose heads are not known yet
    EXPECT_EQ(unknown.read(stream, stream), kept);
    ASSERT_TRUE(plain.cache->copy_from(*unknown.cache, stream, 0, stream));
    EXPECT_EQ(plain.read(0, stream), kept);
    ASSERT_TRUE(s.cache->copy_from(*plain.cache, 0, stream, stream));
    EXPECT_EQ(s.read(stream, stream), kept);
    cache_scene other({host::type_f32, 64, 2, 256, 3}, exact);
    EXPECT_FALSE(other.cache->copy_from(*s.cache, 0, 0, stream));
}

// Transposed values are written number by number, without a word to the store.
TEST_F(Kv, CellsWrittenUnseenAreCopiedAndKept) {
    for (const kv::policy & p : {sealing(kv_codec::i8), exact}) {
        cache_scene s({host::type_f16, 64, 2, 256, 2}, p);
        const size_t stream = 256 * s.shape.row_bytes();
        s.cache->expect_unseen_writes();
        s.cache->keep_plain("test");
        const bytes_t rows = s.random_rows(256, engine);
        std::copy(rows.begin(), rows.end(), const_cast<uint8_t *>(s.rows_of(0)));
        ASSERT_TRUE(s.cache->copy_from(*s.cache, 0, stream, stream));
        s.cache->trim(0, 64);
        EXPECT_EQ(s.read(0, stream), rows);
        EXPECT_EQ(s.read(stream, stream), rows);
    }
}

// --- threads -----------------------------------------------------------------------------------------------------------------------------

TEST_F(Kv, ThreadsShareOpeningAndSealing) {
    for (const cache_shape & shape : shapes) {
        kv::page_arena arena;
        cache_scene keys(shape, sealing(kv_codec::n5), false, &arena), values(shape, sealing(kv_codec::n4), true, &arena);
        for (cache_scene * s : {&keys, &values}) {
            s->view();
            s->set_rows(0, s->random_rows(shape.cells * shape.streams, engine));
        }
        auto together = [&](auto f) {
            std::vector<std::thread> threads;
            for (int t = 0; t < 3; t++) threads.emplace_back(f, t);
            for (auto & t : threads) t.join();
        };
        together([&](int t) {
            if (t < 2) (t == 0 ? keys : values).cache->seal();
        });
        const bytes_t k = keys.read_all(), v = values.read_all();
        for (int i = 0; i < 3; i++) {
            together([&](int t) {
                keys.cache->open_share(t, 3);
                values.cache->open_share(t, 3);
            });
            EXPECT_EQ(keys.num_sealed() + values.num_sealed(), 0);
            together([&](int t) {
                keys.cache->seal_share(t, 3);
                values.cache->seal_share(t, 3);
            });
        }
        EXPECT_LE(keys.loss(k, keys.read_all()), drift(shape));
        EXPECT_LE(values.loss(v, values.read_all()), drift(shape));
        EXPECT_EQ(keys.num_sealed(), shape.blocks());
    }
}

// --- random operations against a plain array ------------------------------------------------------------------------------------------------

// What the cells hold, as far as that is defined: cells that were dropped, or never written, are not.
struct model {
    const cache_scene & s;
    bytes_t bytes, known;
    std::vector<uint8_t> written; // by block
    explicit model(const cache_scene & s) : s(s), bytes(s.shape.bytes()), known(s.shape.bytes()), written(static_cast<size_t>(s.shape.blocks())) {}

    void put(size_t offset, const uint8_t * data, size_t n) {
        std::copy_n(data, n, bytes.begin() + static_cast<std::ptrdiff_t>(offset));
        std::fill_n(known.begin() + static_cast<std::ptrdiff_t>(offset), n, 1);
        for (size_t b = offset / s.shape.block_bytes(); b * s.shape.block_bytes() < offset + n; b++) written[b] = 1;
    }
    void drop(int64_t b) {
        std::fill_n(known.begin() + b * static_cast<int64_t>(s.shape.block_bytes()), s.shape.block_bytes(), 0);
        written[static_cast<size_t>(b)] = 0;
    }
    void copy(const model & from, size_t source, size_t offset, size_t n) {
        const model before = from;
        const size_t block_bytes = s.shape.block_bytes();
        if (source % block_bytes == 0 && offset % block_bytes == 0 && n % block_bytes == 0) {
            for (size_t i = 0; i < n / block_bytes; i++) written[offset / block_bytes + i] = before.written[source / block_bytes + i];
        } else {
            for (size_t b = offset / block_bytes; b * block_bytes < offset + n; b++) written[b] = 1;
        }
        std::copy_n(before.bytes.begin() + static_cast<std::ptrdiff_t>(source), n, bytes.begin() + static_cast<std::ptrdiff_t>(offset));
        std::copy_n(before.known.begin() + static_cast<std::ptrdiff_t>(source), n, known.begin() + static_cast<std::ptrdiff_t>(offset));
    }
    // Rows that are known from end to end agree; those that were written in part become what they are now.
    void check(double loss) {
        const size_t row = s.shape.row_bytes();
        const bytes_t now = s.read_all();
        for (size_t at = 0; at < bytes.size(); at += row) {
            const auto first = known.begin() + static_cast<std::ptrdiff_t>(at);
            const bool whole = std::all_of(first, first + static_cast<std::ptrdiff_t>(row), [](uint8_t k) { return k; });
            if (loss == 0) {
                for (size_t i = at; i < at + row; i++) ASSERT_TRUE(!known[i] || now[i] == bytes[i]) << "byte " << i;
            } else if (whole) {
                const std::ptrdiff_t begin = static_cast<std::ptrdiff_t>(at), end = static_cast<std::ptrdiff_t>(at + row);
                ASSERT_LE(s.loss({bytes.begin() + begin, bytes.begin() + end}, {now.begin() + begin, now.begin() + end}), loss) << "cell " << at / row;
            }
        }
    }
    size_t live() const {
        size_t sum = 0;
        for (int64_t b = 0; b < s.shape.blocks(); b++) {
            const size_t pages = s.sealed_bytes(b);
            EXPECT_TRUE(pages == 0 || written[static_cast<size_t>(b)]) << "block " << b << " is sealed and empty";
            sum += pages > 0 ? pages : written[static_cast<size_t>(b)] ? s.shape.block_bytes() : 0;
        }
        return sum;
    }
    size_t means() const { // that sealed pages show
        std::set<const float *> seen;
        const kv::kv_view v = s.view();
        const int64_t a_stream = s.shape.cells / block;
        for (int64_t b = 0; b < s.shape.blocks() && v.may_be_sealed; b++) seen.insert(v.of(b / a_stream, 0).pages[b % a_stream].mean);
        seen.erase(nullptr);
        return seen.size();
    }
    size_t sealed() const {
        size_t sum = 0;
        for (int64_t b = 0; b < s.shape.blocks(); b++) sum += s.sealed_bytes(b);
        return sum;
    }
};

class KvProperty : public Kv {
  protected:
    size_t up_to(size_t n) { return engine() % n; } // below n

    void play(const cache_shape & shape, const kv::policy & policy, int steps) {
        kv::page_arena arena;
        cache_scene scenes[] = {{shape, policy, false, &arena}, {shape, policy, true, &arena}};
        model models[] = {model(scenes[0]), model(scenes[1])};
        for (cache_scene & s : scenes) s.view();
        const size_t row = shape.row_bytes();
        const auto all_cells = static_cast<size_t>(shape.cells * shape.streams);
        const double loss = policy.lossy ? 1.5 * loss_of(policy.keys) + (shape.type == type_q8_0 ? 1e-3 : 0) : 0;
        for (int step = 0; step < steps && !HasFailure(); step++) {
            const size_t which = up_to(2);
            cache_scene & s = scenes[which];
            model & m = models[which];
            const size_t act = up_to(11);
            std::string what = "step " + std::to_string(step) + ": ";
            if (act < 3) { // a graph writes some cells side by side
                const size_t n = 1 + up_to(act == 0 ? 4 : 200), stream = up_to(static_cast<size_t>(shape.streams));
                const size_t first = up_to(static_cast<size_t>(shape.cells)), count = std::min(n, static_cast<size_t>(shape.cells) - first);
                const size_t at = stream * static_cast<size_t>(shape.cells) + first;
                const bytes_t rows = s.random_rows(static_cast<int64_t>(count), engine);
                s.set_rows(static_cast<int64_t>(at), rows, up_to(3) == 0 ? 4 : 0);
                m.put(at * row, rows.data(), rows.size());
                what += "graph writes " + std::to_string(at) + " +" + std::to_string(count);
            } else if (act == 3) { // or here and there
                std::vector<int64_t> cells;
                for (size_t cell = up_to(9); cell < all_cells; cell += 1 + up_to(90)) cells.push_back(static_cast<int64_t>(cell));
                std::shuffle(cells.begin(), cells.end(), engine);
                const bytes_t rows = s.random_rows(static_cast<int64_t>(cells.size()), engine);
                s.set_rows(cells, rows);
                for (size_t i = 0; i < cells.size(); i++) m.put(static_cast<size_t>(cells[i]) * row, rows.data() + i * row, row);
                what += "graph writes scattered";
            } else if (act == 4) { // the host writes rows, or in exact caches any bytes
                size_t offset = up_to(all_cells) * row, n = std::min(1 + up_to(200), all_cells - offset / row) * row;
                const bytes_t rows = s.random_rows(static_cast<int64_t>(n / row), engine);
                if (!policy.lossy && up_to(2)) {
                    const size_t cut = up_to(n);
                    offset += cut;
                    n = 1 + up_to(n - cut);
                }
                s.write(offset, {rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(n)});
                m.put(offset, rows.data(), n);
                what += "host writes " + std::to_string(offset) + " +" + std::to_string(n);
            } else if (act == 5) {
                const size_t first = up_to(all_cells), n = std::min(1 + up_to(100), all_cells - first);
                s.cache->fill(0, first * row, n * row);
                m.put(first * row, bytes_t(n * row, 0).data(), n * row);
                what += "fill " + std::to_string(first) + " +" + std::to_string(n);
            } else if (act == 6) {
                const auto stream = static_cast<int64_t>(up_to(static_cast<size_t>(shape.streams)));
                const auto cells = static_cast<int64_t>(up_to(static_cast<size_t>(shape.cells) + 1));
                s.cache->trim(stream, cells);
                for (int64_t b = (cells + block - 1) / block; b < shape.cells / block; b++) m.drop(stream * shape.cells / block + b);
                what += "trim " + std::to_string(stream) + " to " + std::to_string(cells);
            } else if (act == 7) {
                s.cache->seal();
                what += "seal";
            } else if (act == 8) {
                const size_t unit = up_to(2) ? static_cast<size_t>(block) : 1, from_which = up_to(2);
                const size_t units = all_cells / unit, from = up_to(units), to = up_to(units), n = 1 + up_to(units - std::max(from, to));
                ASSERT_TRUE(s.cache->copy_from(*scenes[from_which].cache, from * unit * row, to * unit * row, n * unit * row));
                m.copy(models[from_which], from * unit * row, to * unit * row, n * unit * row);
                what += "copy " + std::to_string(from_which) + ":" + std::to_string(from * unit) + " to " + std::to_string(which) + ":" + std::to_string(to * unit) +
                        " +" + std::to_string(n * unit);
            } else if (act == 9) {
                s.cache->open_share(0, 1);
                s.cache->seal_share(0, 1);
                what += "open and close";
            } else if (up_to(6) == 0) {
                s.cache->clear();
                for (int64_t b = 0; b < shape.blocks(); b++) m.drop(b);
                EXPECT_EQ(s.read_all(), bytes_t(shape.bytes(), 0));
                what += "clear";
            }
            SCOPED_TRACE(what);
            for (model & each : models) each.check(loss);
            // Beside rows and pages: means of keys, one for each 16 blocks and for each copy of a stranger's, also of blocks that were opened.
            const size_t means = live() - models[0].live() - models[1].live(), each_mean = static_cast<size_t>(shape.d * shape.heads) * sizeof(float);
            EXPECT_TRUE(means % each_mean == 0 && means / each_mean <= (policy.lossy ? 2 * static_cast<size_t>(shape.blocks()) : 0)) << means;
            EXPECT_GE(means / each_mean, models[0].means());
            EXPECT_EQ(sealed(), models[0].sealed() + models[1].sealed());
            for (cache_scene & each : scenes) each.check_view();
        }
    }
};

const cache_shape small_shapes[] = {
    {host::type_f16, 32, 2, 256, 2}, {host::type_f16, 64, 1, 384, 1}, {host::type_f32, 32, 1, 192, 2}, {type_q8_0, 32, 1, 448, 1}, {type_q8_0, 32, 3, 192, 2},
};

TEST_F(KvProperty, ExactCachesHoldEveryByte) {
    for (const cache_shape & shape : small_shapes) {
        SCOPED_TRACE(shape.name());
        play(shape, exact, 150);
    }
    play({host::type_f16, 24, 1, 320, 1}, exact, 150); // blocks of three quarters of a page of memory
    play({host::type_f16, 16, 1, 320, 1}, exact, 150);
}

TEST_F(KvProperty, LossyCachesHoldEveryRowWithinTheCodecsError) {
    for (const kv_codec codec : codecs) {
        for (const cache_shape & shape : small_shapes) {
            for (const int64_t window : {0, 64}) {
                SCOPED_TRACE(shape.name() + " " + traits_of_codecs[static_cast<int>(codec)].name + " window " + std::to_string(window));
                play(shape, sealing(codec, window), 60);
            }
        }
    }
}

} // namespace
} // namespace alloy::test
