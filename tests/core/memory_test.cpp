// Buffers: every access is answered by the store that owns the bytes, or refused with nothing written.
#include "fake_ggml.h"

#include "base/counters.h"
#include "base/options.h"
#include "graph/claims.h"
#include "graph/memory.h"
#include "host/symbols.h"
#include "plugin/plugin.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <numeric>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

using namespace alloy;
using host::tensor;

namespace {

class Memory : public ::testing::Test {
  protected:
    void SetUp() override {
        fake::reset();
        fake::connect();
        std::string complaint;
        ASSERT_TRUE(read_options(complaint)) << complaint;
    }
    void TearDown() override { unsetenv("GGML_ALLOY_MEMORY"); }

    // A tensor whose op the fake host does not call NONE: weights of such tensors are never packed and go to shadows.
    tensor * make(const char * name, int type, std::vector<int64_t> ne) {
        tensor & t = tensors_.emplace_back();
        t = {};
        t.type = type;
        for (int i = 0; i < host::max_dims; i++) t.ne[i] = i < static_cast<int>(ne.size()) ? ne[i] : 1;
        t.nb[0] = type == 2 ? 18 : fake::type_bytes(type);
        t.nb[1] = host::api().ggml_row_size(type, t.ne[0]);
        t.nb[2] = t.nb[1] * static_cast<size_t>(t.ne[1]);
        t.nb[3] = t.nb[2] * static_cast<size_t>(t.ne[2]);
        std::snprintf(t.name, sizeof(t.name), "%s", name);
        return &t;
    }

    tensor * packable(const char * name, int type, std::vector<int64_t> ne) {
        tensor * t = make(name, type, ne);
        t->op = host::op_number(host::op::none);
        return t;
    }

    // A view of all of `of`, as the host makes them.
    tensor * view_of(tensor * of) {
        tensor * v = make("view", of->type, {of->ne[0], of->ne[1]});
        v->view_src = of;
        return v;
    }

    // The loader's probe: offers `w` as the matrix of a product.
    void offer(tensor * w) {
        host::buffer * candidate = host::api().ggml_backend_buft_alloc_buffer(plugin::the_buffer_type(), 0);
        w->buffer = candidate;
        tensor acts{}, node{};
        node.op = host::op_number(host::op::mul_mat);
        node.src[0] = w;
        node.src[1] = &acts;
        EXPECT_TRUE(graph::claims(&node));
        host::api().ggml_backend_buffer_free(candidate);
        w->buffer = nullptr;
    }

    host::buffer * alloc(std::vector<tensor *> list) {
        host::buffer_type * type = plugin::the_buffer_type();
        return type->iface.alloc_buffer_n(type, list.data(), static_cast<int>(list.size()));
    }

    void set(host::buffer * b, tensor * t, const std::vector<uint8_t> & bytes, size_t offset = 0) {
        b->iface.set_tensor(b, t, bytes.data(), offset, bytes.size());
    }
    std::vector<uint8_t> get(host::buffer * b, const tensor * t, size_t offset, size_t bytes) {
        std::vector<uint8_t> data(bytes, 0xee);
        b->iface.get_tensor(b, t, data.data(), offset, bytes);
        return data;
    }
    static std::vector<uint8_t> pattern(size_t bytes, uint32_t seed = 1) {
        std::vector<uint8_t> data(bytes);
        for (uint8_t & byte : data) byte = static_cast<uint8_t>((seed = seed * 1664525u + 1013904223u) >> 24);
        return data;
    }
    graph::memory & contents(host::buffer * b) { return *static_cast<graph::memory *>(b->context); }

    std::deque<tensor> tensors_;
};

} // namespace

TEST_F(Memory, CacheRowsComeBackAndClearDropsThem) {
    tensor *k = make("cache_k_l0", host::type_f16, {192, 512}), *v = make("cache_v_l0", host::type_f16, {192, 512});
    tensor * k_view = view_of(k);
    host::buffer * b = alloc({k, v, k_view});
    ASSERT_NE(b, nullptr);
    EXPECT_EQ(k_view->data, k->data);
    EXPECT_EQ(value_of(counter::kv_bytes), 2u * 192 * 512 * 2);
    const auto rows = pattern(3 * 384);
    set(b, k_view, rows, 5 * 384);
    EXPECT_EQ(get(b, k, 5 * 384, rows.size()), rows);
    EXPECT_EQ(get(b, v, 0, 384), std::vector<uint8_t>(384, 0));
    b->iface.clear(b, 0);
    EXPECT_EQ(get(b, k, 5 * 384, rows.size()), std::vector<uint8_t>(rows.size(), 0));
    host::api().ggml_backend_buffer_free(b);
    EXPECT_EQ(value_of(counter::kv_bytes), 0u);
}

TEST_F(Memory, UsedCellsOnlyHaveMemoryBehindThem) {
    tensor * k = make("cache_k_l0", host::type_f16, {1024, 32768}); // 64 MiB declared
    host::buffer * b = alloc({k});
    b->iface.clear(b, 0);
    set(b, k, pattern(2048), 0);
    std::vector<unsigned char> resident(64u << 20 >> 12);
    ASSERT_EQ(mincore(reinterpret_cast<void *>(reinterpret_cast<uintptr_t>(k->data) & ~uintptr_t{4095}), 64u << 20, resident.data()), 0);
    EXPECT_LE(std::count_if(resident.begin(), resident.end(), [](unsigned char c) { return c & 1; }), 2);
    host::api().ggml_backend_buffer_free(b);
}

TEST_F(Memory, CacheViewListsThePagesOfEveryHead) {
    tensor * k = make("cache_k_l3", host::type_f16, {128, 256});
    host::buffer * b = alloc({k});
    kv::cache_tensor * cache = contents(b).find_cache(reinterpret_cast<uintptr_t>(k->data));
    ASSERT_NE(cache, nullptr);
    EXPECT_EQ(cache->name().layer, 3);
    tensor heads = *k; // [64, 256 cells, 2 heads] as FLASH_ATTN_EXT sees it
    heads.ne[0] = 64, heads.ne[1] = 256, heads.ne[2] = 2;
    heads.nb[1] = 256, heads.nb[2] = 128;
    const kv::kv_view v = cache->view(heads);
    EXPECT_EQ(v.heads, 2);
    EXPECT_EQ(v.cells, 256);
    const attention_pages second = v.of(0, 1);
    EXPECT_EQ(second.stride, 256);
    for (int64_t block = 0; block < 4; block++) EXPECT_EQ(second.pages[block].data, static_cast<uint8_t *>(k->data) + 128 + block * 64 * 256);
    host::api().ggml_backend_buffer_free(b);
}

TEST_F(Memory, ClearToAValueReachesSealedCells) {
    setenv("GGML_ALLOY_KV", "int8", 1);
    setenv("GGML_ALLOY_KV_WINDOW", "0", 1);
    std::string complaint;
    ASSERT_TRUE(read_options(complaint)) << complaint;
    tensor * k = make("cache_k_l0", host::type_f16, {64, 256});
    host::buffer * b = alloc({k});
    tensor heads = *k;
    heads.ne[2] = 1;
    contents(b).find_cache(reinterpret_cast<uintptr_t>(k->data))->view(heads);
    set(b, k, std::vector<uint8_t>(256 * 128, 0x3c));
    EXPECT_GT(value_of(counter::kv_sealed_bytes), 0u);
    b->iface.clear(b, 0x11);
    EXPECT_EQ(get(b, k, 0, 256 * 128), std::vector<uint8_t>(256 * 128, 0x11));
    host::api().ggml_backend_buffer_free(b);
    unsetenv("GGML_ALLOY_KV");
    unsetenv("GGML_ALLOY_KV_WINDOW");
    ASSERT_TRUE(read_options(complaint));
}

TEST_F(Memory, OutOfRangeAndWrappedAccessesAreRefused) {
    tensor *k = make("cache_k_l0", host::type_f16, {64, 16}), *v = make("cache_v_l0", host::type_f16, {64, 16});
    host::buffer * b = alloc({k, v});
    const uint64_t before = value_of(counter::refused_accesses);
    const uint8_t byte = 7;
    for (auto [offset, bytes] : {std::pair<size_t, size_t>{2048, 1}, {2047, 2}, {SIZE_MAX, 2}, {SIZE_MAX - 1, 2}, {0, SIZE_MAX}}) {
        b->iface.set_tensor(b, k, &byte, offset, bytes);
        EXPECT_TRUE(contents(b).take_refusal()) << offset;
        b->iface.memset_tensor(b, k, 1, offset, bytes);
        EXPECT_TRUE(contents(b).take_refusal()) << offset;
        b->iface.get_tensor(b, k, nullptr, offset, bytes);
        EXPECT_TRUE(contents(b).take_refusal()) << offset;
    }
    tensor stray = *k; // points outside of the buffer altogether
    stray.data = static_cast<char *>(v->data) + 4096;
    b->iface.set_tensor(b, &stray, &byte, 0, 1);
    EXPECT_TRUE(contents(b).take_refusal());
    EXPECT_EQ(value_of(counter::refused_accesses) - before, 16u);
    EXPECT_EQ(get(b, k, 0, 2048), std::vector<uint8_t>(2048, 0));
    EXPECT_EQ(get(b, v, 0, 2048), std::vector<uint8_t>(2048, 0));
    EXPECT_FALSE(contents(b).take_refusal());
    host::api().ggml_backend_buffer_free(b);
}

TEST_F(Memory, CopiesBetweenCachesAndRefusesForeignSources) {
    tensor *a = make("cache_k_l0", host::type_f16, {64, 16}), *c = make("cache_k_l1", host::type_f16, {64, 16});
    host::buffer * b = alloc({a, c});
    const auto rows = pattern(2048);
    set(b, a, rows);
    EXPECT_TRUE(b->iface.cpy_tensor(b, a, c));
    EXPECT_EQ(get(b, c, 0, 2048), rows);
    tensor foreign = *a;
    foreign.buffer = nullptr;
    EXPECT_FALSE(b->iface.cpy_tensor(b, &foreign, c));
    host::api().ggml_backend_buffer_free(b);
}

TEST_F(Memory, OfferedWeightLivesInTheHostsLayoutAndComesBack) {
    fake::state().repacks = true;
    tensor *w = make("blk.0.ffn_up.weight", 2, {128, 24}), *norm = make("blk.0.attn_norm.weight", host::type_f32, {128});
    // Other shapes and names keep the process-wide record of offers apart between tests.
    offer(w);
    EXPECT_FALSE(weights::owns_layer(0));
    host::buffer * b = alloc({w, norm});
    ASSERT_NE(b, nullptr);
    EXPECT_TRUE(weights::owns_layer(0));
    const auto bytes = pattern(host::api().ggml_nbytes(w));
    set(b, w, bytes);
    weights::weight * stored = contents(b).find_weight(w);
    ASSERT_NE(stored, nullptr);
    ASSERT_EQ(stored->where, weights::layout::shadow);
    EXPECT_EQ(stored->shadow.buffer->buft, fake::repack_type());
    EXPECT_EQ(value_of(counter::shadow_bytes), bytes.size());
    EXPECT_NE(std::memcmp(stored->shadow.data, bytes.data(), bytes.size()), 0); // really another layout
    EXPECT_EQ(get(b, w, 0, bytes.size()), bytes);                               // found back without knowing it
    EXPECT_EQ(stored->where, weights::layout::plain);                           // and plain from now on
    EXPECT_EQ(value_of(counter::unpacked_weights), 1u);
    host::api().ggml_backend_buffer_free(b);
    EXPECT_FALSE(weights::owns_layer(0));
    EXPECT_EQ(value_of(counter::weight_bytes), 0u);
}

TEST_F(Memory, OfferedWeightIsPackedAndAnyBytesOfItComeBack) {
    fake::state().repacks = true; // a kernel of ours goes before the host's layout
    tensor * w = packable("blk.4.ffn_up.weight", 2, {288, 36});
    offer(w);
    host::buffer * b = alloc({w});
    ASSERT_NE(b, nullptr);
    auto bytes = pattern(host::api().ggml_nbytes(w));
    set(b, w, bytes);
    weights::weight * stored = contents(b).find_weight(w);
    ASSERT_NE(stored, nullptr);
    ASSERT_EQ(stored->where, weights::layout::packed);
    EXPECT_EQ(value_of(counter::packed_bytes), bytes.size());
    EXPECT_NE(std::memcmp(w->data, bytes.data(), bytes.size()), 0);
    const size_t row = w->nb[1];
    for (const auto & [offset, n] : {std::pair<size_t, size_t>{0, bytes.size()}, {row, 3 * row}, {5, 1}, {row - 3, 7}, {16 * row - 1, row + 2}, {35 * row, row}}) {
        EXPECT_EQ(get(b, w, offset, n), std::vector<uint8_t>(bytes.begin() + offset, bytes.begin() + offset + n)) << offset << " +" << n;
        const auto other = pattern(n, static_cast<uint32_t>(offset + 7));
        set(b, w, other, offset);
        std::copy(other.begin(), other.end(), bytes.begin() + offset);
        EXPECT_EQ(get(b, w, 0, bytes.size()), bytes) << "after a write of " << offset << " +" << n;
    }
    b->iface.memset_tensor(b, w, 0x5a, 3, row);
    std::fill_n(bytes.begin() + 3, row, 0x5a);
    EXPECT_EQ(get(b, w, 0, bytes.size()), bytes);
    const uint64_t unpacked_before = value_of(counter::unpacked_weights);
    // A copy as rows follows later writes, and the packed weight stays.
    const void * rows = contents(b).weights().plain_rows(*stored);
    ASSERT_NE(rows, nullptr);
    EXPECT_EQ(std::memcmp(rows, bytes.data(), bytes.size()), 0);
    set(b, w, pattern(row, 99), 2 * row);
    EXPECT_EQ(std::memcmp(static_cast<const uint8_t *>(rows) + 2 * row, pattern(row, 99).data(), row), 0);
    EXPECT_EQ(stored->where, weights::layout::packed);
    EXPECT_EQ(value_of(counter::unpacked_weights), unpacked_before + 1);
    host::api().ggml_backend_buffer_free(b);
    EXPECT_EQ(value_of(counter::packed_bytes), 0u);
}

TEST_F(Memory, KernelsThatOursWereNeverMeasuredAgainstStay) {
    fake::state().repacks = true;
    fake::state().repack_name = "AMX";
    tensor * w = packable("blk.5.ffn_up.weight", 2, {128, 24});
    offer(w);
    host::buffer * b = alloc({w});
    ASSERT_NE(b, nullptr);
    EXPECT_EQ(contents(b).find_weight(w)->where, weights::layout::shadow);
    host::api().ggml_backend_buffer_free(b);
}

TEST_F(Memory, WeightsNeverOfferedStayPlain) {
    fake::state().repacks = true;
    tensor * w = make("blk.7.odd.weight", 2, {64, 8});
    host::buffer * b = alloc({w});
    const auto bytes = pattern(host::api().ggml_nbytes(w));
    set(b, w, bytes);
    EXPECT_EQ(contents(b).find_weight(w)->where, weights::layout::plain);
    EXPECT_EQ(get(b, w, 0, bytes.size()), bytes);
    EXPECT_EQ(get(b, w, 20, 30), std::vector<uint8_t>(bytes.begin() + 20, bytes.begin() + 50));
    host::api().ggml_backend_buffer_free(b);
}

TEST_F(Memory, PieceOfAShadowedWeightUnpacksItFirst) {
    fake::state().repacks = true;
    tensor * w = make("blk.1.ffn_gate.weight", 2, {64, 16});
    offer(w);
    host::buffer * b = alloc({w});
    auto bytes = pattern(host::api().ggml_nbytes(w));
    set(b, w, bytes);
    set(b, w, {1, 2, 3}, 40);
    std::copy_n(std::vector<uint8_t>{1, 2, 3}.begin(), 3, bytes.begin() + 40);
    EXPECT_EQ(get(b, w, 0, bytes.size()), bytes);
    host::api().ggml_backend_buffer_free(b);
}

TEST_F(Memory, ModelThatDoesNotFitStaysInItsFile) {
    setenv("GGML_ALLOY_MEMORY", "1", 1);
    std::string complaint;
    ASSERT_TRUE(read_options(complaint));
    tensor * w = make("blk.2.ffn_up.weight", host::type_f32, {1024, 512}); // 2 MiB
    host::buffer * b = alloc({w});
    ASSERT_NE(b, nullptr);

    const auto bytes = pattern(host::api().ggml_nbytes(w));
    char path[] = "/tmp/alloy-test-XXXXXX";
    const int file = mkstemp(path);
    ASSERT_EQ(write(file, "odd start", 9), 9);
    ASSERT_EQ(write(file, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    auto * mapping = static_cast<char *>(mmap(nullptr, bytes.size() + 9, PROT_READ, MAP_PRIVATE, file, 0));
    b->iface.set_tensor(b, w, mapping + 9, 0, bytes.size());
    munmap(mapping, bytes.size() + 9); // as the loader does
    close(file);
    unlink(path);

    EXPECT_EQ(value_of(counter::file_bytes), bytes.size());
    EXPECT_EQ(std::memcmp(w->data, bytes.data(), bytes.size()), 0); // what delegated nodes read
    EXPECT_EQ(get(b, w, 0, bytes.size()), bytes);
    host::api().ggml_backend_buffer_free(b);
    EXPECT_EQ(value_of(counter::file_bytes), 0u);
}

TEST_F(Memory, WithoutAFileTheWeightIsCopiedAllTheSame) {
    setenv("GGML_ALLOY_MEMORY", "1", 1);
    std::string complaint;
    ASSERT_TRUE(read_options(complaint));
    tensor * w = make("blk.2.ffn_down.weight", host::type_f32, {1024, 512});
    host::buffer * b = alloc({w});
    EXPECT_EQ(get(b, w, 0, 16), std::vector<uint8_t>(16, 0)); // before anything was written
    const auto bytes = pattern(host::api().ggml_nbytes(w));
    set(b, w, bytes);
    EXPECT_EQ(get(b, w, 0, bytes.size()), bytes);
    host::api().ggml_backend_buffer_free(b);
}

TEST_F(Memory, BufferThatCannotBeHadIsNull) {
    host::buffer_type * type = plugin::the_buffer_type();
    EXPECT_EQ(type->iface.alloc_buffer(type, SIZE_MAX / 2), nullptr);
    EXPECT_EQ(alloc({}), nullptr);
}

TEST_F(Memory, EmptyTensorsAreHarmless) {
    tensor *empty = make("cache_s_l0", host::type_f32, {0, 4}), *state = make("cache_r_l0", host::type_f32, {16, 4});
    host::buffer * b = alloc({empty, state});
    ASSERT_NE(b, nullptr);
    b->iface.set_tensor(b, empty, nullptr, 0, 0);
    b->iface.get_tensor(b, empty, nullptr, 0, 0);
    EXPECT_FALSE(contents(b).take_refusal());
    EXPECT_EQ(value_of(counter::state_bytes), 256u);
    host::api().ggml_backend_buffer_free(b);
}

TEST(CacheNames, AreRecognised) {
    kv::cache_name n;
    ASSERT_TRUE(kv::parse_cache_name("cache_k_l0", n));
    EXPECT_FALSE(n.is_value);
    ASSERT_TRUE(kv::parse_cache_name("cache_v_l17", n));
    EXPECT_TRUE(n.is_value);
    EXPECT_EQ(n.layer, 17);
    ASSERT_TRUE(kv::parse_cache_name("cache_idx_k_l2", n));
    EXPECT_TRUE(n.is_side_cache);
    for (const char * other : {"cache_k_l", "cache_k_l0 (view)", "cache_r_l0", "cache_l0", "blk.0.attn_k.weight", "", "cache_xk_l1"}) {
        EXPECT_FALSE(kv::parse_cache_name(other, n)) << other;
    }
    EXPECT_TRUE(kv::is_state_name("cache_r_l0"));
    EXPECT_FALSE(kv::is_state_name("cache_k_l0"));
}
