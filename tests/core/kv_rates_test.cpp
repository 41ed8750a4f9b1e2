// Bits of its own for each head, from samples of attention.
#include "kv_scene.h"

#include "kv/head_rates.h"

namespace alloy::test {
namespace {

const kv::policy uniform{.lossy = true, .window = 0, .keys = kv_codec::n5, .values = kv_codec::n4, .share = 0.2969};
constexpr cache_shape shape{host::type_f16, 64, 2, 512, 1};

struct host_is_there {
    host_is_there() {
        fake::reset();
        fake::connect();
    }
};

struct layer : host_is_there {
    std::mt19937_64 engine{seed()};
    cache_scene keys{shape, uniform}, values{shape, uniform, true};
    std::vector<float> k, v; // [cells][heads * d]

    layer() {
        keys.cache->balance_by(strong_balance(shape.heads, shape.d));
        for (auto [s, x] : {std::pair(&keys, &k), std::pair(&values, &v)}) {
            s->view();
            const bytes_t rows = s->random_rows(shape.cells, engine);
            for (int64_t c = 0; c < shape.cells; c++) {
                const std::vector<float> row = s->numbers(rows.data() + static_cast<size_t>(c) * shape.row_bytes());
                x->insert(x->end(), row.begin(), row.end());
            }
            s->set_rows(0, rows);
        }
    }
    // One token whose query in head 0 is `sharpness` times the key of cell `wanted`, in the channels that lie smaller in sealed pages than they are;
    // head 1 sees all cells alike.
    kv::attention_sample sample(int64_t wanted, float sharpness) const {
        kv::attention_sample seen;
        seen.which = {{0}};
        seen.heads = seen.kv_heads = shape.heads;
        seen.d_k = seen.d_v = shape.d;
        seen.scale = 0.125f;
        seen.resize();
        seen.sees_block.assign(static_cast<size_t>(shape.blocks()), 1);
        const int64_t width = shape.heads * shape.d;
        for (int64_t head = 0; head < shape.heads; head++) {
            float * q = seen.q.data() + head * shape.d;
            for (int64_t i = 0; i < shape.d; i++) q[i] = head == 0 && keys.cache->balance().of(0)[i] < 0.7f ? sharpness * k[static_cast<size_t>(wanted * width + i)] : 0;
            std::vector<double> p(static_cast<size_t>(shape.cells));
            double sum = 0;
            for (int64_t c = 0; c < shape.cells; c++) {
                double logit = 0;
                for (int64_t i = 0; i < shape.d; i++) logit += static_cast<double>(q[i]) * k[static_cast<size_t>(c * width + head * shape.d + i)];
                sum += p[static_cast<size_t>(c)] = std::exp(seen.scale * logit);
            }
            seen.log_sum[static_cast<size_t>(head)] = static_cast<float>(std::log2(sum));
            for (int64_t c = 0; c < shape.cells; c++) {
                for (int64_t i = 0; i < shape.d; i++) {
                    seen.out[static_cast<size_t>(head * shape.d + i)] += static_cast<float>(p[static_cast<size_t>(c)] / sum) * v[static_cast<size_t>(c * width + head * shape.d + i)];
                }
            }
        }
        return seen;
    }
    // Of blocks that are sealed from now on.
    cell_type codec_of(cache_scene & s, int64_t head) {
        s.set_rows(0, s.random_rows(block, engine));
        s.cache->seal();
        return s.view().of(0, head).pages[0].cells->type;
    }
};

TEST(KvRates, BitsGoToTheHeadThatAttends) {
    layer l;
    kv::head_rates rates(uniform);
    rates.measure(*l.keys.cache, *l.values.cache, {0, 1, 2, 3, 4, 5, 6, 7}, 0, l.sample(200, 6));
    rates.assign();
    // Where one cell has nearly all of the attention, errors of keys change nothing, those of its value all.
    EXPECT_EQ(l.codec_of(l.values, 0), cell_type_of_codec(kv_codec::n5));
}

// Only a sealed cell is attended, whose rows lie turned.
TEST(KvRates, SealedCellsCount) {
    layer l;
    for (cache_scene * s : {&l.keys, &l.values}) {
        s->cache->seal();
        s->set_rows(7 * block, s->random_rows(block, l.engine));
        EXPECT_TRUE(s->is_sealed(3));
        EXPECT_FALSE(s->is_sealed(7));
    }
    kv::head_rates rates(uniform);
    kv::attention_sample seen = l.sample(3 * block + 5, 6);
    rates.measure(*l.keys.cache, *l.values.cache, {7}, 0, seen);
    rates.assign();
    EXPECT_EQ(l.codec_of(l.values, 0), cell_type_of_codec(kv_codec::n5));
}

TEST(KvRates, WhatIsHiddenDoesNotCount) {
    layer l;
    kv::head_rates rates(uniform);
    kv::attention_sample seen = l.sample(200, 6);
    std::fill(seen.sees_block.begin(), seen.sees_block.end(), 0);
    rates.measure(*l.keys.cache, *l.values.cache, {0, 1, 2, 3}, 0, seen);
    rates.assign();
    for (int64_t head = 0; head < shape.heads; head++) EXPECT_EQ(l.codec_of(l.keys, head), cell_type_of_codec(kv_codec::n5));
}

TEST(KvRates, BytesAreThoseOfTheUniformSplit) {
    layer l;
    kv::head_rates rates(uniform);
    rates.measure(*l.keys.cache, *l.values.cache, {0, 1, 2, 3, 4, 5, 6, 7}, 0, l.sample(200, 6));
    rates.assign();
    double bytes = 0;
    for (cache_scene * s : {&l.keys, &l.values}) {
        s->set_rows(0, s->random_rows(block, l.engine));
        s->cache->seal();
        bytes += static_cast<double>(s->sealed_bytes(0));
    }
    const double allowed = uniform.share * static_cast<double>(2 * block * shape.heads * shape.d * 2);
    EXPECT_LE(bytes, allowed);
    EXPECT_GT(bytes, 0.95 * allowed);
}

} // namespace
} // namespace alloy::test
