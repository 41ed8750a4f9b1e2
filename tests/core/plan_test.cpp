// Graphs to plans to runs, on graphs small enough to read.
#include "fake_ggml.h"

#include "base/counters.h"
#include "base/options.h"
#include "graph/claims.h"
#include "graph/session.h"
#include "host/symbols.h"
#include "plugin/plugin.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

using namespace alloy;
using fake::graph_builder;
using host::op;
using host::tensor;

namespace {

constexpr int64_t k = 64, tokens = 6, prompt = 20;

class Plan : public ::testing::Test {
  protected:
    void SetUp() override {
        fake::reset();
        fake::connect();
        set_option("GGML_ALLOY_KERNELS", nullptr);
        plugin::the_buffer_type();
    }
    void TearDown() override {
        for (host::buffer * b : buffers) host::api().ggml_backend_buffer_free(b);
    }
    static void set_option(const char * name, const char * value) {
        if (value) setenv(name, value, 1);
        else unsetenv(name);
        std::string complaint;
        ASSERT_TRUE(read_options(complaint)) << complaint;
    }

    // Plans, checks the plan's promises, and gives its steps as text: "|" before a barrier.
    std::string steps(uint64_t uid = 0) {
        const host::graph & graph = g.graph(uid);
        const graph::plan p = graph::make_plan(graph);
        EXPECT_EQ(graph::verify_plan(p, graph), "");
        misses = p.rule_misses;
        std::string text;
        for (const graph::step & s : p.steps) {
            text += s.barrier ? "|" : " ";
            text += s.label;
            for (const tensor * node : s.run ? std::vector<tensor *>{} : s.nodes) text += std::string(" ") + node->name;
        }
        return text;
    }

    tensor * floats(const char * name, std::vector<int64_t> ne, float scale = 1.0f) {
        tensor * t = g.leaf(name, host::type_f32, ne);
        auto * data = static_cast<float *>(t->data);
        const size_t n = host::api().ggml_nbytes(t) / sizeof(float);
        for (size_t i = 0; i < n; i++) data[i] = scale * std::sin(0.37f * static_cast<float>(i) + 0.1f);
        return t;
    }
    tensor * norm(tensor * x, const char * name) {
        tensor * t = g.node(op::rms_norm, name, {x->ne[0], x->ne[1]}, {x});
        g.set_param(t, 0, 1e-5f);
        return t;
    }
    tensor * rope(tensor * x, tensor * positions, const char * name, int mode = host::rope_normal) {
        tensor * t = g.node(op::rope, name, {x->ne[0], x->ne[1], x->ne[2]}, {x, positions});
        t->op_params[1] = static_cast<int>(x->ne[0]);
        t->op_params[2] = mode;
        t->op_params[4] = 4096;
        for (auto [slot, value] : {std::pair<int, float>{5, 10000.0f}, {6, 1.0f}, {7, 0.0f}, {8, 1.0f}, {9, 32.0f}, {10, 1.0f}}) g.set_param(t, slot, value);
        return t;
    }
    tensor * positions(int64_t n) {
        tensor * p = g.leaf("positions", host::type_i32, {n});
        for (int i = 0; i < n; i++) static_cast<int32_t *>(p->data)[i] = 3 * i + 1;
        return p;
    }
    // A weight [m][k] in a buffer of ours, offered and packed as q4_0.
    tensor * packed(const char * name, int64_t k, int64_t m) {
        tensor * w = g.leaf(name, type_q4_0, {k, m});
        w->op = host::op_number(op::none);
        w->data = nullptr;
        host::buffer * candidate = host::api().ggml_backend_buft_alloc_buffer(plugin::the_buffer_type(), 0);
        w->buffer = candidate;
        tensor acts{}, probe{};
        probe.op = host::op_number(op::mul_mat);
        probe.src[0] = w;
        probe.src[1] = &acts;
        EXPECT_TRUE(graph::claims(&probe));
        host::api().ggml_backend_buffer_free(candidate);
        w->buffer = nullptr;
        tensor * list[] = {w};
        host::buffer * b = plugin::the_buffer_type()->iface.alloc_buffer_n(plugin::the_buffer_type(), list, 1);
        buffers.push_back(b);
        std::vector<uint8_t> bytes(host::api().ggml_nbytes(w));
        for (size_t i = 0; i < bytes.size(); i++) bytes[i] = i % 18 == 0 ? 0 : i % 18 == 1 ? 0x20 : static_cast<uint8_t>(31 * i); // d = 2^-7
        b->iface.set_tensor(b, w, bytes.data(), 0, bytes.size());
        return w;
    }
    // Attention over caches in f32 with heads of 32 elements; `rows`: tokens of the queries.
    tensor * attention(int64_t rows, const char * name, tensor ** queries = nullptr) {
        tensor *q = floats("queries", {32, rows, 4}), *keys = floats("keys", {32, 70, 2}), *values = floats("values", {32, 70, 2});
        mask = mask ? mask : g.leaf("mask", host::type_f16, {70, rows});
        tensor * t = g.node(op::flash_attn_ext, name, {32, 4, rows}, {q, keys, values, mask});
        g.set_param(t, 0, 0.2f);
        if (queries) *queries = q;
        return t;
    }
    // Its output turned back, as the host does for quantised caches.
    tensor * turned(tensor * attended, const char * name) {
        const int64_t rows = attended->ne[1] * attended->ne[2];
        tensor * t = g.node(op::mul_mat, name, {32, rows}, {floats("rotation", {32, 32}), g.view(attended, "flat", {32, rows})});
        t->op_params[1] = host::hint_src0_is_hadamard;
        return t;
    }
    // What the host adds behind the logits for one row: PAD and VIEW, then TOP_K, SCALE and the draw.
    struct sampled_row {
        tensor *logits, *padded, *uniform, *top_k, *scaled, *shares, *cdf, *index, *sampled;
    };
    tensor * pad_of(tensor * logits) {
        tensor * padded = g.node(op::pad, "padded", {logits->ne[0], logits->ne[1] + 1}, {logits});
        padded->op_params[3] = 1;
        return padded;
    }
    sampled_row chain(tensor * logits, tensor * padded, int64_t row, int64_t k) {
        sampled_row r{};
        const int64_t n = logits->ne[0];
        r.logits = logits;
        r.padded = padded;
        r.uniform = floats("uniform", {1});
        tensor * view = g.view(padded, "row", {n});
        view->op = host::op_number(op::view);
        view->view_offs = static_cast<size_t>(row) * padded->nb[1];
        view->data = static_cast<char *>(padded->data) + view->view_offs;
        r.top_k = g.node(op::top_k, "top_k", {k}, {view});
        r.top_k->type = host::type_i32;
        tensor * best = g.node(op::get_rows, "best", {1, k}, {g.view(view, "rows", {1, n}), r.top_k});
        r.scaled = g.node(op::scale, "scaled", {1, k}, {best});
        g.set_param(r.scaled, 0, 2);
        r.shares = g.node(op::soft_max, "shares", {k}, {g.view(r.scaled, "flat", {k})});
        g.set_param(r.shares, 0, 1);
        r.cdf = g.node(op::cumsum, "cdf", {k}, {r.shares});
        tensor * distance = g.node(op::sub, "distance", {k}, {r.cdf, r.uniform});
        tensor * above = g.node(op::unary, "above", {k}, {distance});
        above->op_params[0] = host::unary_step;
        tensor * clamped = g.node(op::clamp, "clamped", {1}, {g.node(op::sum, "sum", {1}, {above})});
        g.set_param(clamped, 0, 1);
        g.set_param(clamped, 1, static_cast<float>(k));
        tensor * place = g.node(op::scale, "place", {1}, {clamped});
        g.set_param(place, 0, -1);
        g.set_param(place, 1, static_cast<float>(k));
        r.index = g.node(op::cpy, "index", {1}, {place});
        r.index->type = host::type_i32;
        r.index->src[1] = r.index;
        r.sampled = g.node(op::get_rows, "sampled", {1, 1}, {g.view(r.top_k, "ids", {1, k}), r.index});
        r.sampled->type = host::type_i32;
        for (tensor * t : {r.sampled, r.shares, r.scaled, r.top_k}) t->flags |= host::flag_output;
        return r;
    }
    sampled_row sampled_graph(int64_t n, int64_t k) {
        tensor * logits = floats("logits", {n, 1}, 3);
        logits->flags |= host::flag_output;
        return chain(logits, pad_of(logits), 0, k);
    }
    tensor * mask = nullptr;
    tensor * product(tensor * w, tensor * x, const char * name) {
        return g.node(op::mul_mat, name, {w->ne[1], x->ne[1], x->ne[2]}, {w, x});
    }
    static constexpr int type_q4_0 = 2;

    float at(const tensor * t, int64_t i) { return static_cast<const float *>(t->data)[i]; }

    graph_builder g;
    std::vector<host::buffer *> buffers; // of packed weights
    int misses = 0;
};

} // namespace

TEST_F(Plan, NormAndItsWeightBecomeOneCall) {
    tensor *x = floats("x", {k, tokens}), *w = floats("w", {k});
    tensor * n = norm(x, "norm");
    g.node(op::mul, "mul", {k, tokens}, {n, w});
    EXPECT_EQ(steps(), "|rms_norm_mul");
}

TEST_F(Plan, NormWithASecondReaderKeepsItsOutput) {
    tensor *x = floats("x", {k, tokens}), *w = floats("w", {k});
    tensor * n = norm(x, "norm");
    g.node(op::mul, "mul", {k, tokens}, {n, w});
    g.node(op::add, "other_reader", {k, tokens}, {n, x});
    EXPECT_EQ(steps(), "|rms_norm|host mul|add");
}

TEST_F(Plan, NormMarkedAsOutputIsNotFused) {
    tensor *x = floats("x", {k, tokens}), *w = floats("w", {k});
    tensor * n = norm(x, "norm");
    n->flags |= host::flag_output;
    g.node(op::mul, "mul", {k, tokens}, {n, w});
    EXPECT_EQ(steps(), "|rms_norm|host mul");
}

TEST_F(Plan, MulOverAShiftedPieceOfTheSourceIsAMiss) {
    tensor *x = floats("x", {k, tokens + 1}), *w = floats("w", {k});
    x->ne[1] = tokens;
    tensor * n = norm(x, "norm");
    tensor * m = g.node(op::mul, "mul", {k, tokens}, {n, w});
    m->data = static_cast<char *>(x->data) + k * sizeof(float); // the allocator may do this: x is dead after the norm
    EXPECT_EQ(steps(), "|rms_norm|host mul");
    EXPECT_EQ(misses, 1);
    m->data = x->data; // in place is fine
    EXPECT_EQ(steps(), "|rms_norm_mul");
}

TEST_F(Plan, TheDrawIsOneWalk) {
    tensor *shares = floats("shares", {40, 1}), *u = floats("u", {1});
    for (int i = 0; i < 40; i++) static_cast<float *>(shares->data)[i] = 0.025f;
    tensor * cumsum = g.node(op::cumsum, "cumsum", {40, 1}, {shares});
    tensor * sub = g.node(op::sub, "sub", {40, 1}, {cumsum, u});
    tensor * mask = g.node(op::unary, "mask", {40, 1}, {sub});
    mask->op_params[0] = host::unary_step;
    tensor * sum = g.node(op::sum, "sum", {1}, {mask});
    const host::graph & graph = g.graph(0);
    const graph::plan p = graph::make_plan(graph);
    EXPECT_EQ(steps(), "|CUMSUM + SUB + UNARY + SUM");
    ASSERT_EQ(p.steps.size(), 1u);
    for (const auto & [uniform, above] : {std::pair<float, float>{0.56f, 18}, {0.0f, 40}, {0.99f, 1}, {1.5f, 0}, {0.41f, 24}}) {
        *static_cast<float *>(u->data) = uniform;
        p.steps[0].run(p.steps[0].arguments, 0, 1);
        EXPECT_EQ(above, *static_cast<float *>(sum->data)) << uniform;
    }
}

TEST_F(Plan, ADrawWithReadersIsWritten) {
    for (const bool output : {false, true}) {
        g = {};
        tensor *p = floats("p", {40, 1}), *u = floats("u", {1});
        tensor * cumsum = g.node(op::cumsum, "cumsum", {40, 1}, {p});
        tensor * sub = g.node(op::sub, "sub", {40, 1}, {cumsum, u});
        tensor * mask = g.node(op::unary, "mask", {40, 1}, {sub});
        mask->op_params[0] = host::unary_step;
        g.node(op::sum, "sum", {1}, {mask});
        if (output) mask->flags |= host::flag_output;
        else g.node(op::sum, "other_reader", {1}, {cumsum});
        EXPECT_EQ(steps(), output ? "|CUMSUM|SUB|UNARY|SUM" : "|CUMSUM|SUB|UNARY|SUM SUM");
    }
}

TEST_F(Plan, SamplersOfARowAreOneStepWithoutTheCopyOfTheLogits) {
    const sampled_row r = sampled_graph(600, 5);
    EXPECT_EQ(steps(), "|chain(top_k temperature draw)");
    const graph::plan p = graph::make_plan(g.graph(0));
    ASSERT_EQ(p.steps.size(), 1u);
    EXPECT_EQ(p.steps[0].writes.size(), 4u);
    std::vector<float> sorted(static_cast<const float *>(r.logits->data), static_cast<const float *>(r.logits->data) + 600);
    std::sort(sorted.rbegin(), sorted.rend());
    for (const auto & [uniform, place] : {std::pair<float, int>{0.0f, 0}, {0.999f, 4}, {1.0f, 4}}) {
        *static_cast<float *>(r.uniform->data) = uniform;
        p.steps[0].run(p.steps[0].arguments, 0, 1);
        const auto * ids = static_cast<const int32_t *>(r.top_k->data);
        EXPECT_EQ(ids[place], *static_cast<const int32_t *>(r.sampled->data)) << uniform;
        for (int i = 0; i < 5; i++) {
            EXPECT_EQ(sorted[static_cast<size_t>(i)], at(r.logits, ids[i]));
            EXPECT_EQ(2 * sorted[static_cast<size_t>(i)], at(r.scaled, i));
        }
    }
}

TEST_F(Plan, OfAChainOnlyWhatIsReadIsWritten) {
    const sampled_row r = sampled_graph(600, 5);
    for (tensor * t : {r.shares, r.scaled, r.top_k}) t->flags &= ~host::flag_output;
    const graph::plan p = graph::make_plan(g.graph(0));
    ASSERT_EQ(p.steps.size(), 1u);
    EXPECT_EQ(p.steps[0].writes.size(), 1u);
    p.steps[0].run(p.steps[0].arguments, 0, 1);
    EXPECT_EQ(0, at(r.shares, 0));
}

TEST_F(Plan, AChainWithAnotherReaderRunsNodeByNode) {
    const sampled_row r = sampled_graph(600, 5);
    g.node(op::sum, "other_reader", {1}, {r.cdf});
    const std::string text = steps();
    EXPECT_EQ(text.find("chain"), std::string::npos) << text;
    EXPECT_NE(text.find("TOP_K"), std::string::npos) << text;
    EXPECT_GT(misses, 0);
    g = {};
    sampled_graph(600, 5).cdf->flags |= host::flag_output;
    EXPECT_EQ(steps().find("chain"), std::string::npos);
}

TEST_F(Plan, AChainOfAnotherShapeRunsNodeByNode) {
    const sampled_row r = sampled_graph(600, 5);
    g.set_param(r.shares, 0, 0.5f); // no sampler of the host scales here
    EXPECT_EQ(steps().find("draw)"), std::string::npos);
    g.set_param(r.shares, 0, 1);
    r.uniform->op = host::op_number(op::scale); // computed, not an input
    EXPECT_EQ(steps().find("draw)"), std::string::npos);
    r.uniform->op = host::op_number(op::none);
    EXPECT_EQ(steps(), "|chain(top_k temperature draw)");
}

TEST_F(Plan, PaddedLogitsWithAnotherReaderAreWritten) {
    const sampled_row r = sampled_graph(600, 5);
    g.node(op::sum, "other_reader", {1}, {r.padded});
    EXPECT_EQ(steps(), "|PAD chain(top_k temperature draw)|SUM");
    // Logits that are no output may be written over once they are padded: the padded rows are read then.
    g = {};
    sampled_graph(600, 5).logits->flags &= ~host::flag_output;
    EXPECT_EQ(steps(), "|PAD|chain(top_k temperature draw)");
}

TEST_F(Plan, AResultOverTheLogitsIsAMiss) {
    const sampled_row r = sampled_graph(600, 5);
    r.shares->data = static_cast<float *>(r.logits->data) + 8;
    EXPECT_EQ(steps().find("chain"), std::string::npos);
    EXPECT_GT(misses, 0);
}

TEST_F(Plan, RowsShareAStepUnlessOneWritesWhatAnotherReads) {
    tensor * logits = floats("logits", {600, 2}, 3);
    logits->flags |= host::flag_output;
    tensor * padded = pad_of(logits);
    const sampled_row first = chain(logits, padded, 0, 5), second = chain(logits, padded, 1, 7);
    EXPECT_EQ(steps(), "|chain(top_k temperature draw) + chain(top_k temperature draw)");
    const graph::plan p = graph::make_plan(g.graph(0));
    ASSERT_EQ(p.steps.size(), 1u);
    ASSERT_EQ(p.steps[0].num_tasks, 2);
    for (int task = 0; task < 2; task++) p.steps[0].run(p.steps[0].arguments, task, 2);
    for (const auto & [row, r] : {std::pair<int64_t, const sampled_row &>{0, first}, {1, second}}) {
        const float * x = static_cast<const float *>(logits->data) + 600 * row;
        EXPECT_EQ(*std::max_element(x, x + 600), x[*static_cast<const int32_t *>(r.top_k->data)]);
    }
    first.sampled->data = second.uniform->data;
    EXPECT_EQ(steps(), "|chain(top_k temperature draw)|chain(top_k temperature draw)");
}

TEST_F(Plan, ResidualAndNormShareAStep) {
    tensor *x = floats("x", {k, tokens}), *y = floats("y", {k, tokens}), *w = floats("w", {k});
    tensor * sum = g.node(op::add, "sum", {k, tokens}, {x, y});
    tensor * n = norm(sum, "norm");
    g.node(op::mul, "mul", {k, tokens}, {n, w});
    EXPECT_EQ(steps(), "|add + rms_norm_mul");
}

TEST_F(Plan, BroadcastOfAnEarlierResultNeedsABarrier) {
    tensor *x = floats("x", {k, tokens}), *y = floats("y", {k, tokens});
    tensor * sum = g.node(op::add, "sum", {k, tokens}, {x, y});
    tensor * row = g.view(sum, "first_row", {k, 1});
    g.node(op::add, "every_row_plus_first", {k, tokens}, {y, row});
    EXPECT_EQ(steps(), "|add|add");
}

TEST_F(Plan, IndependentStepsShareABarrier) {
    tensor *x = floats("x", {k, tokens}), *y = floats("y", {k, 2 * tokens});
    norm(x, "a");
    norm(y, "b");
    EXPECT_EQ(steps(), "|rms_norm rms_norm");
}

TEST_F(Plan, RopesOfOneGraphShareTheirAngles) {
    tensor *q = floats("q", {16, 4, tokens}), *key = floats("k", {16, 2, tokens}), *p = positions(tokens);
    rope(q, p, "q_rope");
    rope(key, p, "k_rope", host::rope_neox);
    EXPECT_EQ(steps(), "|rope_table|rope_normal rope_neox");
}

TEST_F(Plan, WhatWeHaveNoKernelForGoesToTheHostInOneRun) {
    tensor *x = floats("x", {k, tokens}), *w = floats("w", {k, k});
    tensor * a = g.node(op::mul_mat, "q", {k, tokens}, {w, x});
    g.node(op::mul_mat, "v", {k, tokens}, {w, x});
    tensor * n = norm(a, "n");
    g.node(op::mul_mat, "o", {k, tokens}, {w, n});
    EXPECT_EQ(steps(), "|host q v|rms_norm|host o");
}

TEST_F(Plan, KernelsOffDelegatesEverything) {
    set_option("GGML_ALLOY_KERNELS", "off");
    tensor *x = floats("x", {k, tokens}), *w = floats("w", {k});
    tensor * n = norm(x, "norm");
    g.node(op::mul, "mul", {k, tokens}, {n, w});
    EXPECT_EQ(steps(), "|host norm mul");
    set_option("GGML_ALLOY_KERNELS", nullptr);
}

TEST_F(Plan, NodesWithoutComputeFlagViewsAndEmptyOnesAreLeftOut) {
    tensor * x = floats("x", {k, tokens});
    norm(x, "skipped")->flags = 0;
    g.view(x, "view", {k * tokens});
    tensor * empty = g.node(op::scale, "empty", {k, 0}, {x});
    (void) empty;
    norm(x, "kept");
    EXPECT_EQ(steps(), "|rms_norm");
}

TEST_F(Plan, ProductsOfOneInputShareItsQuantisation) {
    tensor * x = floats("x", {k, tokens});
    product(packed("share.q.weight", k, 32), x, "q");
    product(packed("share.k.weight", k, 16), x, "k");
    EXPECT_EQ(steps(), "|quantize q8_32|matmul q4_0 matmul q4_0");
}

TEST_F(Plan, InputWrittenBetweenIsQuantisedAgain) {
    tensor * x = floats("x", {k, tokens});
    product(packed("again.q.weight", k, 32), x, "q");
    tensor * sum = g.node(op::add, "sum", {k, tokens}, {x, x});
    sum->data = x->data;
    tensor * same = g.view(sum, "same", {k, tokens});
    product(packed("again.k.weight", k, 16), same, "k");
    EXPECT_EQ(steps(), "|quantize q8_32|matmul q4_0 add + quantize q8_32|matmul q4_0");
}

TEST_F(Plan, ResidualAndBiasAreAddedByTheProduct) {
    tensor *x = floats("x", {k, tokens}), *residual = floats("residual", {32, tokens}), *bias = floats("bias", {48});
    tensor * p = product(packed("add.o.weight", k, 32), x, "o");
    g.node(op::add, "sum", {32, tokens}, {p, residual});
    tensor * q = product(packed("add.q.weight", k, 48), x, "q");
    g.node(op::add, "biased", {48, tokens}, {q, bias});
    EXPECT_EQ(steps(), "|quantize q8_32|matmul q4_0 + add matmul q4_0 + add");
    EXPECT_EQ(misses, 0);
}

TEST_F(Plan, ProductWithASecondReaderIsWritten) {
    tensor *x = floats("x", {k, tokens}), *residual = floats("residual", {32, tokens});
    tensor * p = product(packed("second.o.weight", k, 32), x, "o");
    g.node(op::add, "sum", {32, tokens}, {p, residual});
    g.node(op::add, "other", {32, tokens}, {p, p});
    EXPECT_EQ(steps(), "|quantize q8_32|matmul q4_0|add add");
}

TEST_F(Plan, SumOverAShiftedPieceOfTheResidualIsAMiss) {
    tensor *x = floats("x", {k, tokens}), *residual = floats("residual", {32, tokens});
    tensor * p = product(packed("shift.o.weight", k, 32), x, "o");
    tensor * sum = g.node(op::add, "sum", {32, tokens}, {p, residual});
    sum->data = static_cast<float *>(residual->data) + 32; // one row on
    steps();
    EXPECT_EQ(misses, 1);
}

TEST_F(Plan, PackedWeightReadAsRowsIsDelegatedWithACopy) {
    tensor *x = floats("x", {k, tokens}), *w = packed("rows.o.weight", k, 32);
    tensor * ids = positions(2);
    product(w, x, "o");
    g.node(op::get_rows, "rows", {k, 2}, {w, ids});
    const host::graph & graph = g.graph();
    const graph::plan p = graph::make_plan(graph);
    ASSERT_EQ(p.delegated_nodes, 1);
    const tensor * read = nullptr;
    for (const graph::step & s : p.steps)
        if (s.run == nullptr) read = s.nodes[0]->src[0];
    ASSERT_NE(read, nullptr);
    EXPECT_NE(read->data, w->data);
    EXPECT_EQ(static_cast<const uint8_t *>(read->data)[1], 0x20); // the first scale of a GGUF row
}

TEST_F(Plan, AttentionOfFewTokensIsJoinedAndOfManyIsNot) {
    attention(1, "a");
    attention(1, "b");
    EXPECT_EQ(steps(), "|mask map|attention f32|join|attention f32|join");
    g = graph_builder();
    mask = nullptr;
    attention(prompt, "c");
    EXPECT_EQ(steps(), "|mask map|attention f32");
}

TEST_F(Plan, AttentionRunsGiveTheFormula) {
    for (const int64_t rows : {int64_t(1), prompt}) {
        g = graph_builder();
        mask = nullptr;
        tensor * q = nullptr;
        tensor * t = attention(rows, "a", &q);
        static_cast<uint16_t *>(mask->data)[69] = 0xFC00; // the last cell is hidden from the first token
        auto session = graph::session::make();
        ASSERT_TRUE(session);
        ASSERT_EQ(session->compute(g.graph(0)), host::status_success);
        const tensor *keys = t->src[1], *values = t->src[2];
        for (int64_t head = 0; head < 4; head++) {
            double total = 0, sum = 0;
            for (int64_t c = 0; c < 69; c++) {
                double x = 0;
                for (int64_t i = 0; i < 32; i++) x += 0.2 * at(q, head * rows * 32 + i) * at(keys, (head / 2 * 70 + c) * 32 + i);
                total += std::exp(x);
                sum += std::exp(x) * at(values, (head / 2 * 70 + c) * 32 + 5);
            }
            EXPECT_NEAR(at(t, head * 32 + 5), sum / total, 1e-5) << "head " << head << " of " << rows << " tokens";
        }
    }
}

TEST_F(Plan, OutputOfAttentionIsTurnedBackAsItIsFinished) {
    turned(attention(1, "a"), "t");
    EXPECT_EQ(steps(), "|mask map|attention f32|join + hadamard");
    g = graph_builder();
    mask = nullptr;
    tensor * q = nullptr;
    tensor * many = attention(prompt, "b", &q);
    turned(many, "t");
    EXPECT_EQ(steps(), "|mask map|attention f32 + hadamard");
    EXPECT_EQ(misses, 0);
}

TEST_F(Plan, OutputOverOtherOperandsOrWithASecondReaderIsWrittenFirst) {
    tensor * q = nullptr;
    tensor * a = attention(prompt, "a", &q);
    turned(a, "t")->data = q->data; // rows of queries do not lie as those of the output
    EXPECT_EQ(steps(), "|mask map|attention f32|hadamard");
    EXPECT_EQ(misses, 1);
    g = graph_builder();
    mask = nullptr;
    tensor * b = attention(prompt, "b");
    turned(b, "t");
    g.node(op::scale, "again", {32, 4, prompt}, {b});
    EXPECT_EQ(steps(), "|mask map|attention f32|hadamard scale");
    EXPECT_EQ(misses, 0);
}

TEST_F(Plan, AttentionOnOddShapesIsDelegated) {
    tensor *q = floats("q", {20, 1, 2}), *keys = floats("k", {20, 8, 2}), *values = floats("v", {20, 8, 2});
    g.node(op::flash_attn_ext, "a", {20, 2, 1}, {q, keys, values});
    EXPECT_EQ(steps(), "|host a");
}

TEST_F(Plan, HalfPrecisionRopeAndOddShapesAreDelegated) {
    tensor *q = floats("q", {16, 4, tokens}), *p = positions(tokens);
    tensor * half = rope(q, p, "mrope");
    half->op_params[2] = 8;
    tensor * offset = rope(q, p, "offset");
    offset->op_params[15] = 2;
    EXPECT_EQ(steps(), "|host mrope offset");
}

TEST_F(Plan, RunsGiveTheFormula) {
    fake::state().threads = 3;
    tensor *x = floats("x", {k, tokens}), *y = floats("y", {k, tokens}), *w = floats("w", {k}), *matrix = floats("m", {k, k});
    tensor * sum = g.node(op::add, "sum", {k, tokens}, {x, y});
    tensor * n = norm(sum, "norm");
    tensor * m = g.node(op::mul, "mul", {k, tokens}, {n, w});
    g.node(op::mul_mat, "product", {k, tokens}, {matrix, m}); // makes the host's threads carry the run
    auto session = graph::session::make();
    ASSERT_EQ(session->compute(g.graph(5)), host::status_success);
    EXPECT_EQ(fake::state().ran, (std::vector<std::string>{"CUSTOM", "product"}));
    for (int64_t row = 0; row < tokens; row++) {
        double squares = 0;
        for (int64_t i = 0; i < k; i++) squares += std::pow(double(at(x, row * k + i)) + at(y, row * k + i), 2);
        const double s = 1 / std::sqrt(squares / k + 1e-5);
        for (int64_t i = 0; i < k; i++) {
            const double expected = (double(at(x, row * k + i)) + at(y, row * k + i)) * s * at(w, i);
            EXPECT_NEAR(at(m, row * k + i), expected, 1e-6) << row << " " << i;
        }
    }
}

TEST_F(Plan, RopeFollowsThePositionsOfEachRun) {
    tensor *q = floats("q", {16, 4, tokens}), *p = positions(tokens);
    tensor * r = rope(q, p, "q_rope");
    auto session = graph::session::make();
    for (int shift : {0, 100}) { // the second run reuses the plan
        for (int64_t t = 0; t < tokens; t++) static_cast<int32_t *>(p->data)[t] = static_cast<int32_t>(t) + shift;
        ASSERT_EQ(session->compute(g.graph(9)), host::status_success);
        for (int64_t t = 0; t < tokens; t++) {
            for (int64_t j = 0; j < 8; j++) {
                const double angle = double(t + shift) * std::pow(10000.0, -2.0 * double(j) / 16);
                const double lo = at(q, t * 64 + 2 * j), hi = at(q, t * 64 + 2 * j + 1);
                EXPECT_NEAR(at(r, t * 64 + 2 * j), lo * std::cos(angle) - hi * std::sin(angle), 2e-5);
                EXPECT_NEAR(at(r, t * 64 + 2 * j + 1), lo * std::sin(angle) + hi * std::cos(angle), 2e-5);
            }
        }
    }
    EXPECT_TRUE(fake::state().ran.empty()); // nothing was delegated: our own threads
}

TEST_F(Plan, SameUidReusesItsPlanAndZeroNever) {
    tensor * x = floats("x", {k, tokens});
    norm(x, "n");
    auto session = graph::session::make();
    const uint64_t built = value_of(counter::plans_built), reused = value_of(counter::plans_reused);
    for (uint64_t uid : {1, 1, 2, 1, 0, 0}) ASSERT_EQ(session->compute(g.graph(uid)), host::status_success);
    EXPECT_EQ(value_of(counter::plans_built) - built, 4u);
    EXPECT_EQ(value_of(counter::plans_reused) - reused, 2u);
}

TEST_F(Plan, RowNumbersOutOfRangeFailTheRunBeforeAnythingIsWritten) {
    tensor * table = floats("table", {k, 10});
    tensor * ids = g.leaf("ids", host::type_i32, {3});
    g.node(op::get_rows, "rows", {k, 3}, {table, ids});
    auto session = graph::session::make();
    auto * row = static_cast<int32_t *>(ids->data);
    EXPECT_EQ(session->compute(g.graph(3)), host::status_success);
    for (int32_t bad : {-1, 10, INT32_MIN, INT32_MAX}) {
        row[1] = bad;
        fake::state().ran.clear();
        EXPECT_EQ(session->compute(g.graph(3)), host::status_failed);
        EXPECT_TRUE(fake::state().ran.empty());
    }
    row[1] = 9;
    EXPECT_EQ(session->compute(g.graph(3)), host::status_success);
}

TEST_F(Plan, SixtyFourBitRowNumbersAreCheckedToo) {
    tensor *rows = floats("new_rows", {k, 2}), *cache = floats("cache", {k, 8});
    tensor * ids = g.leaf("ids", host::type_i64, {2});
    tensor * written = g.node(op::set_rows, "set", {k, 8}, {rows, ids, cache});
    written->view_src = cache;
    written->data = cache->data;
    auto session = graph::session::make();
    static_cast<int64_t *>(ids->data)[1] = 8;
    EXPECT_EQ(session->compute(g.graph(4)), host::status_failed);
    static_cast<int64_t *>(ids->data)[1] = 7;
    EXPECT_EQ(session->compute(g.graph(4)), host::status_success);
}

TEST_F(Plan, AbortCallbackStopsOwnRuns) {
    tensor * x = floats("x", {k, tokens});
    norm(x, "n");
    auto session = graph::session::make();
    session->set_abort_callback([](void *) { return true; }, nullptr);
    EXPECT_EQ(session->compute(g.graph(1)), host::status_aborted);
    session->set_abort_callback(nullptr, nullptr);
    EXPECT_EQ(session->compute(g.graph(1)), host::status_success);
}

TEST_F(Plan, HostFailureIsPassedOn) {
    tensor *x = floats("x", {k, tokens}), *w = floats("w", {k, k});
    g.node(op::mul_mat, "product", {k, tokens}, {w, x});
    auto session = graph::session::make();
    fake::state().status = host::status_aborted;
    EXPECT_EQ(session->compute(g.graph(1)), host::status_aborted);
}

TEST_F(Plan, HostWithoutCpuBackendGivesNoSession) {
    // cpu_device() remembers the first device it sees, so the registry is asked directly.
    fake::state().has_cpu = false;
    EXPECT_EQ(host::api().ggml_backend_dev_by_type(host::device_cpu), nullptr);
}

TEST_F(Plan, EmptyGraphSucceeds) {
    auto session = graph::session::make();
    EXPECT_EQ(session->compute(g.graph(1)), host::status_success);
}
