// What graphs do to compressed caches: noted when they are planned, prepared before each run, sealed at its end.
#include "fake_ggml.h"

#include "base/counters.h"
#include "base/options.h"
#include "graph/memory.h"
#include "graph/session.h"
#include "host/symbols.h"
#include "plugin/plugin.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

using namespace alloy;
using host::op;
using host::tensor;

// Requests of so many bytes fail; 0: none does. The thread sanitizer has operators of its own.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define ALLOY_THREAD_SANITIZER
#endif
#endif
static std::atomic<size_t> no_memory_for{0};
#ifndef ALLOY_THREAD_SANITIZER
[[gnu::noinline]] void * operator new(size_t bytes) {
    void * p = bytes == no_memory_for.load() ? nullptr : std::malloc(bytes);
    return p != nullptr ? p : throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void * p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void * p, size_t) noexcept { std::free(p); }
static constexpr bool memory_can_fail = true;
#else
static constexpr bool memory_can_fail = false;
#endif

namespace {

constexpr int64_t d = 64, kv_heads = 1, cells = 512, row_bytes = d * 2;

class KvPlan : public ::testing::Test {
  protected:
    void SetUp() override {
        fake::reset();
        fake::connect();
        setenv("GGML_ALLOY_KV", "int8", 1);
        setenv("GGML_ALLOY_KV_WINDOW", "64", 1);
        std::string complaint;
        ASSERT_TRUE(read_options(complaint)) << complaint;
        for (tensor * t : {&k, &v}) {
            *t = {};
            t->type = host::type_f16;
            const int64_t ne[] = {d * kv_heads, cells, 1, 1};
            std::copy_n(ne, 4, t->ne);
            t->nb[0] = 2, t->nb[1] = row_bytes, t->nb[2] = t->nb[3] = row_bytes * cells;
            t->op = host::op_number(op::none);
            std::snprintf(t->name, sizeof(t->name), "cache_%c_l0", t == &k ? 'k' : 'v');
        }
        tensor * list[] = {&k, &v};
        buffer = plugin::the_buffer_type()->iface.alloc_buffer_n(plugin::the_buffer_type(), list, 2);
        session = graph::session::make();
        ASSERT_TRUE(session);
    }
    void TearDown() override {
        session.reset();
        host::api().ggml_backend_buffer_free(buffer);
        EXPECT_EQ(value_of(counter::kv_live_bytes), 0u);
        EXPECT_EQ(value_of(counter::kv_balanced_caches), 0u);
        unsetenv("GGML_ALLOY_KV");
        unsetenv("GGML_ALLOY_KV_WINDOW");
        std::string complaint;
        ASSERT_TRUE(read_options(complaint));
    }

    kv::cache_tensor & cache(const tensor & t) { return *graph::memory_of(&t)->find_cache(reinterpret_cast<uintptr_t>(t.data)); }
    void set(tensor & t, int64_t first, int64_t n) {
        std::vector<uint16_t> rows(static_cast<size_t>(n * d));
        for (uint16_t & x : rows) x = static_cast<uint16_t>(0x3000 | (seed = seed * 1664525u + 1013904223u) >> 21);
        buffer->iface.set_tensor(buffer, &t, rows.data(), static_cast<size_t>(first * row_bytes), rows.size() * 2);
    }
    std::vector<uint8_t> get(const tensor & t, int64_t first, int64_t n) {
        std::vector<uint8_t> rows(static_cast<size_t>(n * row_bytes));
        buffer->iface.get_tensor(buffer, &t, rows.data(), static_cast<size_t>(first * row_bytes), rows.size());
        return rows;
    }

    tensor * view_of(tensor & t, const char * name, std::vector<int64_t> ne) {
        tensor * view = g.view(&t, name, ne);
        view->buffer = t.buffer;
        return view;
    }
    tensor * write(tensor & t, int64_t rows, tensor * from = nullptr) {
        if (from == nullptr) from = g.leaf("rows", host::type_f32, {d * kv_heads, rows});
        tensor * whole = view_of(t, "all cells", {d * kv_heads, cells});
        tensor * set_rows = g.node(op::set_rows, "set", {d * kv_heads, cells}, {from, indices, whole});
        set_rows->type = t.type;
        std::copy_n(whole->nb, 4, set_rows->nb);
        set_rows->view_src = &t;
        set_rows->data = t.data;
        return set_rows;
    }
    tensor * heads(tensor & t, int64_t n) {
        tensor * view = view_of(t, "heads", {d, n, kv_heads});
        view->nb[1] = row_bytes, view->nb[2] = d * 2, view->nb[3] = row_bytes * cells;
        return view;
    }
    tensor * turn(tensor * rows, int mode) { // by position
        tensor * turned = g.node(op::rope, "turned", {rows->ne[0], rows->ne[1], rows->ne[2]}, {rows, positions});
        turned->op_params[1] = d;
        turned->op_params[2] = mode;
        for (auto [slot, value] : {std::pair<int, float>{5, 10000.0f}, {6, 1.0f}, {8, 1.0f}, {9, 32.0f}, {10, 1.0f}}) g.set_param(turned, slot, value);
        return turned;
    }
    tensor * norm(int64_t heads, int64_t rows, tensor * weights) {
        tensor * normed = g.node(op::rms_norm, "norm", {d, heads, rows}, {g.leaf("x", host::type_f32, {d, heads, rows})});
        return g.node(op::mul, "normed", {d, heads, rows}, {normed, weights});
    }
    // A layer that norms its queries and keys.
    void normed_layer(const std::vector<float> & of_queries, const std::vector<float> & of_keys, int mode) {
        constexpr int64_t rows = 4;
        indices = g.leaf("indices", host::type_i64, {rows});
        positions = g.leaf("positions", host::type_i32, {rows});
        tensor *weights[2] = {g.leaf("q_norm", host::type_f32, {d}), g.leaf("k_norm", host::type_f32, {d})};
        std::copy(of_queries.begin(), of_queries.end(), static_cast<float *>(weights[0]->data));
        std::copy(of_keys.begin(), of_keys.end(), static_cast<float *>(weights[1]->data));
        tensor * scaled = g.node(op::scale, "scaled", {d, 2, rows}, {turn(norm(2, rows, weights[0]), mode)});
        g.set_param(scaled, 0, 0.5f);
        tensor * queries = g.view(scaled, "queries", {d, rows, 2});
        queries->op = host::op_number(op::permute);
        queries->nb[1] = d * 2 * 4, queries->nb[2] = d * 4;
        write(k, rows, g.view(turn(norm(kv_heads, rows, weights[1]), mode), "flat", {d * kv_heads, rows}));
        write(v, rows);
        attend(rows, cells, queries);
    }
    // One layer: `rows` cells are written, then n cells are attended by as many tokens.
    void layer(int64_t rows, int64_t n) {
        indices = g.leaf("indices", host::type_i64, {rows});
        positions = g.leaf("positions", host::type_i32, {rows});
        for (int64_t i = 0; i < rows; i++) {
            static_cast<int64_t *>(indices->data)[i] = i;
            static_cast<int32_t *>(positions->data)[i] = static_cast<int32_t>(i);
        }
        turn(g.leaf("q", host::type_f32, {d, 2, rows}), host::rope_normal);
        write(k, rows);
        write(v, rows);
        attend(rows, n);
    }
    void attend(int64_t rows, int64_t n, tensor * queries = nullptr, tensor * values = nullptr) {
        if (queries == nullptr) queries = g.leaf("queries", host::type_f32, {d, rows, 2});
        if (values == nullptr) values = &v;
        tensor * t = g.node(op::flash_attn_ext, "attention", {d, 2, rows}, {queries, heads(k, n), heads(*values, n), g.leaf("mask", host::type_f16, {n, rows})});
        g.set_param(t, 0, 0.125f);
    }
    void fill() {
        set(k, 0, cells);
        set(v, 0, cells);
    }
    void shift_keys() {
        tensor * all = view_of(k, "all", {d, kv_heads, cells});
        tensor * shift = g.node(op::rope, "shift", {d, kv_heads, cells}, {all, g.leaf("by", host::type_i32, {cells})});
        shift->type = k.type;
        std::copy_n(all->nb, 4, shift->nb);
        shift->view_src = &k;
        shift->data = k.data;
    }
    std::vector<std::string> labels() {
        const host::graph & graph = g.graph();
        const graph::plan p = graph::make_plan(graph);
        EXPECT_EQ(graph::verify_plan(p, graph), "");
        std::vector<std::string> found;
        for (const graph::step & s : p.steps) found.push_back((s.barrier ? "|" : "") + s.label);
        return found;
    }
    int run() { return session->compute(g.graph(++uid)); }

    fake::graph_builder g;
    tensor k{}, v{}, *indices = nullptr, *positions = nullptr;
    host::buffer * buffer = nullptr;
    std::unique_ptr<graph::session> session;
    uint32_t seed = 1;
    uint64_t uid = 100;
};

} // namespace

TEST_F(KvPlan, WritesAndReadsAreNotedAndTheSealComesLast) {
    layer(4, 256);
    const host::graph & graph = g.graph();
    const graph::plan p = graph::make_plan(graph);
    ASSERT_EQ(p.caches->writes.size(), 2u);
    EXPECT_EQ(p.caches->writes[0].cache, &cache(k));
    EXPECT_EQ(p.caches->writes[0].indices, indices);
    EXPECT_EQ(p.caches->writes[0].first_row, 0);
    EXPECT_EQ(p.caches->positions, positions);
    ASSERT_EQ(p.caches->reads.size(), 2u);
    EXPECT_NE(p.caches->reads[0].cache, p.caches->reads[1].cache);
    for (const graph::cache_read & r : p.caches->reads) {
        EXPECT_TRUE(r.cache == &cache(k) || r.cache == &cache(v));
        EXPECT_EQ(r.cells, 256);
    }
    EXPECT_EQ(p.steps.back().label, "seal");
    EXPECT_EQ(labels().back(), "seal"); // the join before it reads states only
    g = {};
    layer(20, 256);
    EXPECT_EQ(labels().back(), "|seal");
    EXPECT_FALSE(cache(k).is_plain());
}

TEST_F(KvPlan, GraphsSealWhatIsOldAndOpenWhatTheyWrite) {
    layer(20, cells);
    fill();
    ASSERT_EQ(run(), host::status_success);
    const uint64_t sealed = value_of(counter::kv_sealed_bytes);
    EXPECT_GT(sealed, 0u);
    const uint64_t opened = value_of(counter::kv_opened_pages);
    for (int64_t i = 0; i < 20; i++) static_cast<int64_t *>(indices->data)[i] = 120 + i; // blocks 1 and 2
    ASSERT_EQ(run(), host::status_success);
    EXPECT_EQ(value_of(counter::kv_opened_pages) - opened, 4u);
    EXPECT_LT(value_of(counter::kv_sealed_bytes), sealed);
}

TEST_F(KvPlan, WithoutMemoryToSealRowsStayAndAreSealedLater) {
    if (!memory_can_fail) GTEST_SKIP();
    layer(20, cells);
    fill();
    const uint64_t sealed = value_of(counter::kv_sealed_pages), unsealable = value_of(counter::kv_unsealable_blocks);
    no_memory_for = attention_block * d * sizeof(float); // rows on their way to a codec
    ASSERT_EQ(run(), host::status_success);
    EXPECT_EQ(value_of(counter::kv_sealed_pages), sealed);
    EXPECT_GT(value_of(counter::kv_unsealable_blocks), unsealable);
    const uint64_t tried = value_of(counter::kv_unsealable_blocks);
    ASSERT_EQ(run(), host::status_success);
    EXPECT_EQ(value_of(counter::kv_unsealable_blocks), tried); // not in every graph
    no_memory_for = 0;
    for (int i = 0; i < 4; i++) ASSERT_EQ(run(), host::status_success); // 80 rows, more than the window
    EXPECT_GT(value_of(counter::kv_sealed_pages), sealed);
}

// A context shift opens blocks within the graph.
TEST_F(KvPlan, GraphsThatFindNoMemoryFailAndTheNextOneRuns) {
    if (!memory_can_fail) GTEST_SKIP();
    layer(20, cells);
    fill();
    ASSERT_EQ(run(), host::status_success);
    g = {};
    shift_keys();
    const uint64_t failed = value_of(counter::failed_graphs), sealed = value_of(counter::kv_sealed_bytes);
    no_memory_for = attention_block * d * sizeof(float);
    EXPECT_EQ(run(), host::status_alloc_failed);
    no_memory_for = 0;
    EXPECT_EQ(value_of(counter::failed_graphs), failed + 1);
    g = {};
    shift_keys();
    EXPECT_EQ(run(), host::status_success);
    EXPECT_EQ(value_of(counter::kv_sealed_bytes), sealed);
}

TEST_F(KvPlan, WholeBlocksAreDroppedNotOpened) {
    layer(64, cells);
    fill();
    ASSERT_EQ(run(), host::status_success);
    const uint64_t opened = value_of(counter::kv_opened_pages), sealed = value_of(counter::kv_sealed_bytes);
    for (int64_t i = 0; i < 64; i++) static_cast<int64_t *>(indices->data)[i] = 128 + (i * 11) % 64; // in any order
    ASSERT_EQ(run(), host::status_success);
    EXPECT_EQ(value_of(counter::kv_opened_pages), opened);
    EXPECT_LT(value_of(counter::kv_sealed_bytes), sealed + 1);
}

TEST_F(KvPlan, IndicesOutOfRangeLeaveTheStoreUntouched) {
    layer(20, 256);
    set(k, 0, cells);
    const auto before = get(k, 0, cells);
    const uint64_t live = value_of(counter::kv_live_bytes), opened = value_of(counter::kv_opened_pages);
    for (const int64_t bad : {int64_t(-1), cells, INT64_MAX, INT64_MIN}) {
        static_cast<int64_t *>(indices->data)[7] = bad;
        EXPECT_EQ(run(), host::status_failed);
    }
    EXPECT_EQ(get(k, 0, cells), before);
    EXPECT_EQ(value_of(counter::kv_live_bytes), live);
    EXPECT_EQ(value_of(counter::kv_opened_pages), opened);
}

TEST_F(KvPlan, CellsBeyondThoseOfTheGraphAreDropped) {
    layer(4, 256);
    fill();
    const auto kept = get(k, 64, 192);
    ASSERT_EQ(run(), host::status_success);
    EXPECT_EQ(get(k, 64, 192).size(), kept.size());
    EXPECT_EQ(get(k, 256, 256), std::vector<uint8_t>(256 * row_bytes, 0));
    EXPECT_LE(value_of(counter::kv_live_bytes), 2u * 256 * row_bytes);
}

TEST_F(KvPlan, CellsOfAnAliasAreNotTrimmed) {
    tensor alias = k; // the cache of a second context: a view of the first one's
    alias.view_src = &k;
    fill();
    tensor * keys = heads(k, 256);
    keys->src[0] = &alias;
    tensor * t = g.node(op::flash_attn_ext, "attention", {d, 2, 4}, {g.leaf("q", host::type_f32, {d, 4, 2}), keys, heads(v, 256), g.leaf("m", host::type_f16, {256, 4})});
    g.set_param(t, 0, 0.125f);
    ASSERT_EQ(run(), host::status_success);
    EXPECT_NE(get(k, 256, 256), std::vector<uint8_t>(256 * row_bytes, 0));
    EXPECT_EQ(get(v, 256, 256), std::vector<uint8_t>(256 * row_bytes, 0));
}

TEST_F(KvPlan, LayersThatShareACacheSealItOnce) {
    layer(20, cells);
    attend(20, cells);
    attend(20, cells);
    fill();
    const host::graph & graph = g.graph();
    const graph::plan p = graph::make_plan(graph);
    const uint64_t sealed = value_of(counter::kv_sealed_pages);
    ASSERT_EQ(p.caches->reads.size(), 6u);
    const auto of_keys = std::find_if(p.caches->reads.begin(), p.caches->reads.end(), [&](const graph::cache_read & r) { return r.cache == &cache(k); });
    p.caches->reads.assign(6, *of_keys);
    p.caches->prepare();
    constexpr int num_threads = 6;
    std::atomic<int> waiting{num_threads};
    std::vector<std::thread> threads;
    for (int t = 0; t < num_threads; t++) {
        threads.emplace_back([&] {
            waiting--;
            while (waiting > 0) std::this_thread::yield();
            p.caches->seal(num_threads);
        });
    }
    for (std::thread & t : threads) t.join();
    EXPECT_EQ(value_of(counter::kv_sealed_pages) - sealed, 6u); // neither the sinks nor the window
    EXPECT_EQ(value_of(counter::kv_sealed_pages) - sealed, value_of(counter::kv_sealed_bytes) / (64 * (d + 2)));
    EXPECT_EQ(cache(k).is_plain(), false);
}

TEST_F(KvPlan, ContextShiftsOpenAndCloseTheCache) {
    layer(4, cells);
    fill();
    ASSERT_EQ(run(), host::status_success);
    const uint64_t sealed = value_of(counter::kv_sealed_bytes);
    ASSERT_GT(sealed, 0u);
    const auto rows = get(k, 0, cells);
    g = {};
    shift_keys();
    EXPECT_EQ(labels(), (std::vector<std::string>{"|open cache", "|host", "|close cache"}));
    ASSERT_EQ(run(), host::status_success);
    EXPECT_EQ(value_of(counter::kv_sealed_bytes), sealed);
    EXPECT_EQ(get(k, 0, cells), rows); // the fake host does not turn anything
    EXPECT_FALSE(cache(k).is_plain());
}

TEST_F(KvPlan, WeightsOfNormsBalanceKeys) {
    std::vector<float> of_queries(d, 1), of_keys(d, 1);
    of_queries[3] = 100, of_keys[d / 2 + 5] = 10;
    normed_layer(of_queries, of_keys, host::rope_neox);
    labels();
    const float * factors = cache(k).balance().of(0);
    ASSERT_NE(factors, nullptr);
    EXPECT_EQ(cache(v).balance().of(0), nullptr);
    EXPECT_EQ(value_of(counter::kv_balanced_caches), 1u);
    for (int64_t i = 0; i < d / 2; i++) {
        EXPECT_EQ(factors[i], factors[i + d / 2]) << i; // turned into one another
        if (i == 3) EXPECT_GT(factors[i], 2);
        else if (i == 5) EXPECT_LT(factors[i], 0.5);
        else EXPECT_EQ(factors[i], factors[0]);
    }
    // For good: pages that are sealed know no others.
    g = {};
    normed_layer(of_keys, of_queries, host::rope_neox);
    labels();
    EXPECT_GT(cache(k).balance().of(0)[3], 2);
    fill();
    ASSERT_EQ(run(), host::status_success);
    EXPECT_GT(value_of(counter::kv_sealed_bytes), 0u);
}

TEST_F(KvPlan, BalancedKeysAreNoValues) {
    normed_layer(std::vector<float>(d, 1), std::vector<float>(d, 1), host::rope_neox);
    labels();
    EXPECT_FALSE(cache(k).is_plain());
    attend(4, cells, nullptr, &k);
    labels();
    EXPECT_TRUE(cache(k).is_plain());
}

TEST_F(KvPlan, NeighboursAreBalancedAlikeWherePositionTurnsThese) {
    std::vector<float> of_queries(d, 1), of_keys(d, 1);
    of_queries[3] = 100;
    normed_layer(of_queries, of_keys, host::rope_normal);
    labels();
    const float * factors = cache(k).balance().of(0);
    ASSERT_NE(factors, nullptr);
    EXPECT_EQ(factors[2], factors[3]);
    EXPECT_LT(factors[1], factors[2]);
}

TEST_F(KvPlan, KeysWithoutNormsAreNotBalanced) {
    layer(4, cells);
    labels();
    EXPECT_EQ(cache(k).balance().of(0), nullptr);
    EXPECT_FALSE(cache(k).is_plain());
}

TEST_F(KvPlan, WithoutFlashAttentionCachesBecomePlain) {
    set(k, 0, cells);
    indices = g.leaf("indices", host::type_i64, {4});
    write(k, 4);
    g.node(op::mul_mat, "scores", {256, 4, 2}, {heads(k, 256), g.leaf("q", host::type_f32, {d, 4, 2})});
    labels();
    EXPECT_TRUE(cache(k).is_plain());
    // Values lie transposed: SET_ROWS of single numbers.
    g = {};
    tensor * ids = g.leaf("ids", host::type_i64, {4 * d});
    tensor * numbers = view_of(v, "numbers", {1, d * cells});
    tensor * set_numbers = g.node(op::set_rows, "set", {1, d * cells}, {g.leaf("x", host::type_f32, {1, 4 * d}), ids, numbers});
    set_numbers->type = v.type;
    std::copy_n(numbers->nb, 4, set_numbers->nb);
    set_numbers->view_src = &v;
    set_numbers->data = v.data;
    labels();
    EXPECT_TRUE(cache(v).is_plain());
}
