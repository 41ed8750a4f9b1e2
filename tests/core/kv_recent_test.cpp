// The most recent cells of each sequence, which the host does not name.
#include "kv/recent_cells.h"

#include <gtest/gtest.h>

#include <numeric>

using alloy::kv::recent_cells;

namespace {

constexpr int64_t window = 4, cells = 256;

struct scene {
    recent_cells recent{window};
    explicit scene(int64_t streams = 1) { recent.cover(this, cells * streams, streams); }
    void tokens(const std::vector<int64_t> & at, const std::vector<int32_t> & positions) { recent.write(at, positions.data()); }
    void prompt(int64_t at, int32_t position, int64_t n) {
        std::vector<int64_t> c(static_cast<size_t>(n));
        std::vector<int32_t> p(static_cast<size_t>(n));
        std::iota(c.begin(), c.end(), at);
        std::iota(p.begin(), p.end(), position);
        recent.write(c, p.data());
    }
    std::vector<int64_t> all() const {
        std::vector<int64_t> found;
        for (int64_t c = 0; c < 2 * cells; c++) {
            if (recent.has(c)) found.push_back(c);
        }
        return found;
    }
};
using list = std::vector<int64_t>;

TEST(KvRecent, TheLastOfASequence) {
    scene s;
    s.prompt(0, 0, 10);
    EXPECT_EQ(s.all(), (list{6, 7, 8, 9}));
    s.tokens({20}, {10});
    EXPECT_EQ(s.all(), (list{7, 8, 9, 20}));
    EXPECT_TRUE(s.recent.has_any(0, 8));
    EXPECT_FALSE(s.recent.has_any(0, 7));
    EXPECT_FALSE(s.recent.has_any(cells, 64));
    s.recent.clear();
    EXPECT_EQ(s.all(), list{});
}

TEST(KvRecent, SequencesGoOnWhereTheyEnded) {
    scene s;
    s.prompt(0, 0, 10);
    s.prompt(10, 0, 6);
    EXPECT_EQ(s.all(), (list{6, 7, 8, 9, 12, 13, 14, 15}));
    for (int32_t i = 0; i < 4; i++) s.tokens({16 + 2 * i, 17 + 2 * i}, {6 + i, 10 + i}); // the other way round
    EXPECT_EQ(s.all(), (list{16, 17, 18, 19, 20, 21, 22, 23}));
    s.prompt(30, 14, 9); // one rests
    EXPECT_EQ(s.all(), (list{16, 18, 20, 22, 35, 36, 37, 38}));
}

TEST(KvRecent, BothOfTwoAtTheSamePosition) {
    scene s;
    s.prompt(0, 0, 10);
    for (int32_t i = 0; i < 4; i++) s.tokens({20 + i, 30 + i}, {10 + i, 10 + i}); // a copy of the first
    EXPECT_EQ(s.all(), (list{20, 21, 22, 23, 30, 31, 32, 33}));
}

TEST(KvRecent, TokensAreTakenBack) {
    scene s;
    s.prompt(0, 0, 10);
    s.prompt(10, 8, 1); // a draft's last two were wrong
    EXPECT_EQ(s.all(), (list{6, 7, 10}));
}

TEST(KvRecent, CellsThatOthersTake) {
    scene s;
    s.prompt(0, 0, 10);
    s.prompt(5, 0, 3); // over what the first left
    EXPECT_EQ(s.all(), (list{5, 6, 7, 8, 9}));
    s.prompt(20, 10, 4);
    EXPECT_EQ(s.all(), (list{5, 6, 7, 20, 21, 22, 23}));
    s.recent.forget_from(0, 22);
    EXPECT_EQ(s.all(), (list{5, 6, 7, 20, 21}));
}

TEST(KvRecent, ThoseThatRestedLongestAreForgotten) {
    scene s;
    for (int32_t i = 0; i < 100; i++) s.prompt(2 * i, 0, 2);
    ASSERT_EQ(s.all().size(), 2u * cells / 8 / window);
    EXPECT_EQ(s.all().front(), 200 - 2 * cells / 8 / window);
}

TEST(KvRecent, WithoutPositionsThereIsOneSequence) {
    scene s;
    s.recent.write({1, 2, 3, 4, 5}, nullptr);
    s.recent.write({10, 11}, nullptr);
    EXPECT_EQ(s.all(), (list{4, 5, 10, 11}));
}

TEST(KvRecent, RestoredSequencesGoOnWithTheNextTokens) {
    scene s;
    const int other = 0;
    s.prompt(0, 0, 10);
    const auto number = s.recent.restored_sequence(&s);
    s.recent.restore(40, 10);
    EXPECT_EQ(s.recent.restored_sequence(&s), number);
    s.recent.restore(60, 2);
    EXPECT_EQ(s.recent.restored_sequence(&other), number); // a cache behind it
    EXPECT_EQ(s.all(), (list{6, 7, 8, 9, 48, 49, 60, 61}));
    EXPECT_NE(s.recent.restored_sequence(&s), number); // another sequence
    s.recent.restore(100, 1);
    EXPECT_EQ(s.all(), (list{6, 7, 8, 9, 48, 49, 60, 61, 100}));
    s.tokens({70, 71}, {10, 25});
    EXPECT_EQ(s.all(), (list{7, 8, 9, 48, 49, 60, 61, 70, 71, 100}));
    EXPECT_NE(s.recent.restored_sequence(&s), number + 1); // a graph lies between
}

TEST(KvRecent, StreamsHaveTheirOwn) {
    scene s(2);
    s.prompt(0, 0, 10);
    s.prompt(cells, 0, 10);
    s.prompt(cells + 10, 10, 1);
    EXPECT_EQ(s.all(), (list{6, 7, 8, 9, cells + 7, cells + 8, cells + 9, cells + 10}));
    s.recent.copy(cells, 0, cells);
    EXPECT_EQ(s.all(), (list{6, 7, 8, 9, 10, cells + 7, cells + 8, cells + 9, cells + 10}));
    s.recent.forget_from(1, 0);
    EXPECT_EQ(s.all(), (list{6, 7, 8, 9, 10}));
}

TEST(KvRecent, NoWindowAndNoCacheHoldNothing) {
    recent_cells none(0), unknown(4);
    none.cover(&none, 64, 1);
    for (recent_cells * r : {&none, &unknown}) {
        r->write({1, 2, 3, 1000, -1}, nullptr);
        r->restored_sequence(r);
        r->restore(0, 100);
        r->copy(0, 10, 10);
        r->forget_from(0, 0);
        EXPECT_FALSE(r->has_any(0, 64));
    }
}

} // namespace
