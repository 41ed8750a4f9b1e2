// mul_mat_cases [--case N]: thousands of small graphs around MUL_MAT and MUL_MAT_ID on the plugin in the unmodified host, each compared
// with double precision.
#include "support/scene_cases.h"

#ifndef ALLOY_HOST_HEADERS
int main() { return alloy::test::without_headers(); }
#else
#include "kernels/matmul/matmul.h"
#include "support/host_scene.h"
#include "support/values.h"

#include <string>
#include <vector>

namespace alloy::test {
namespace {

// --- shapes -------------------------------------------------------------------------------------------------------------------------
const matrix_type & packed_type(int64_t i) { return packed_types[i % num_packed_types]; }
const matrix_type & other_type(int64_t i) { return other_types[i % num_other_types]; }
const matrix_type & any_type(int64_t i) {
    const int64_t all = num_packed_types + num_other_types;
    return i % all < num_packed_types ? packed_types[i % all] : other_types[i % all - num_packed_types];
}

int64_t a_depth(scene & s, const matrix_type & type) {
    if (type.floating()) return s.pick(1, 500);
    return type.block * s.pick(1, type.block == 32 ? 20 : type.block == 128 ? 6 : 4);
}
int64_t some_rows(scene & s) { return s.chance(0.5) ? s.pick(1, 48) : s.chance(0.5) ? s.pick(1, 300) : 16 * s.pick(1, 8); }
int64_t some_columns(scene & s) { return s.chance(0.5) ? s.pick(1, 9) : s.chance(0.04) ? 300 : s.pick(1, 40); }

// --- kinds of cases; `i` counts within a kind ---------------------------------------------------------------------------------------
void product(scene & s, int64_t i) {
    const matrix_type & type = packed_type(i);
    const int64_t k = a_depth(s, type);
    weight & w = s.add_weight(type, k, some_rows(s));
    s.expect(s.mul_mat(w, s.leaf(s.add_input(k, some_columns(s)))));
    s.run();
    if (s.chance(0.2)) s.run(); // a plan of the scheduler's graph is used again
}

void columns_of_views(scene & s, int64_t i) {
    const matrix_type & type = packed_type(i);
    const int64_t k = a_depth(s, type);
    weight & w = s.add_weight(type, k, some_rows(s));
    const layout how = s.chance(0.7) ? layout::strided : layout::dense;
    s.expect(s.mul_mat(w, s.leaf(s.add_input(k, s.pick(1, 12), s.pick(1, 4), s.pick(1, 3), how))));
    s.run();
}

void batches(scene & s, int64_t i) {
    const matrix_type & type = packed_type(i);
    const int64_t k = a_depth(s, type), matrices = s.pick(2, 5);
    weight & w = s.add_weight(type, k, s.pick(1, 80), matrices);
    const layout how = s.chance(0.5) ? layout::strided : layout::dense;
    node y = s.mul_mat(w, s.leaf(s.add_input(k, s.pick(1, 12), matrices * s.pick(1, 3), s.pick(1, 2), how)));
    if (s.chance(0.3)) {
        const node residual = s.leaf(s.add_input(w.rows(), y.tensor->ne[1], y.tensor->ne[2], y.tensor->ne[3]));
        y = s.add(ggml_add(s.graph_context(), y.tensor, residual.tensor), y, residual);
    }
    s.expect(y);
    s.run();
}

enum sum_kind {
    bias, bias_first, residual, residual_first, strided_residual, into_product, into_residual, into_input, input_as_residual, two_products,
    product_kept, product_twice, row_of_batch, num_sum_kinds
};

void sums(scene & s, int64_t i) {
    const matrix_type & type = packed_type(i);
    const auto kind = static_cast<sum_kind>(i / num_packed_types % num_sum_kinds);
    const bool square = kind == into_input || kind == input_as_residual, batch = kind == row_of_batch;
    const int64_t k = a_depth(s, type), rows = square ? k : some_rows(s), n = some_columns(s), n2 = batch ? s.pick(2, 4) : 1;
    s.describe("sum kind %d", kind);
    weight & w = s.add_weight(type, k, rows);
    const node x = s.leaf(s.add_input(k, n, n2));
    node before{};
    if (kind == two_products) before = s.mul_mat(s.add_weight(type, k, rows), x);
    const node y = s.mul_mat(w, x);
    ggml_context * c = s.graph_context();
    auto plain = [&](const node & a, const node & b) { return s.add(ggml_add(c, a.tensor, b.tensor), a, b); };
    auto in_place = [&](const node & a, const node & b) { return s.add(ggml_add_inplace(c, a.tensor, b.tensor), a, b); };
    node term{};
    if (kind == bias || kind == bias_first) term = s.leaf(s.add_bias(rows));
    else if (kind == input_as_residual || kind == into_input) term = x;
    else if (kind == two_products) term = before;
    else if (kind == row_of_batch) term = s.leaf(s.add_input(rows, 1, n2));
    else term = s.leaf(s.add_input(rows, n, 1, 1, kind == strided_residual ? layout::strided : layout::dense));
    switch (kind) {
        case residual_first:
        case two_products: s.expect(plain(term, y)); break;
        case bias_first: s.expect(n == 1 ? plain(term, y) : plain(y, term)); break; // a row is added to, never the other way round
        case into_product: s.expect(in_place(y, term)); break;
        case into_residual:
        case into_input: s.expect(in_place(term, y)); break;
        case product_kept:
            s.expect(y);
            s.expect(plain(y, term));
            break;
        case product_twice:
            s.expect(plain(y, term));
            s.expect(plain(y, s.leaf(s.add_input(rows, n))));
            break;
        default: s.expect(plain(y, term)); break;
    }
    s.run();
}

// Products of several types on several inputs: quantised activations are kept and dropped in turn.
void shared_inputs(scene & s, int64_t i) {
    const int64_t k = 256 * s.pick(1, 2), num_inputs = s.pick(1, 4), products = s.pick(2, 8);
    std::vector<node> inputs;
    for (int64_t j = 0; j < num_inputs; j++) inputs.push_back(s.leaf(s.add_input(k, s.pick(1, 20))));
    for (int64_t j = 0; j < products; j++) {
        weight & w = s.add_weight(packed_type(j == 0 ? i : s.pick(0, num_packed_types - 1)), k, s.pick(1, 100));
        node y = s.mul_mat(w, inputs[static_cast<size_t>(s.pick(0, num_inputs - 1))]);
        if (s.chance(0.3)) {
            const node b = s.leaf(s.add_bias(w.rows()));
            y = s.add(ggml_add(s.graph_context(), y.tensor, b.tensor), y, b);
        }
        s.expect(y);
    }
    s.run();
}

// The second product of an input must see what was written to it after the first.
void overwritten_input(scene & s, int64_t i) {
    const matrix_type & type = packed_type(i);
    const int64_t k = a_depth(s, type), n = s.pick(1, 20), kind = i / num_packed_types % 7;
    s.describe("overwritten by %lld", static_cast<long long>(kind));
    weight & first = s.add_weight(type, k, s.pick(1, 64));
    weight & second = s.chance(0.3) ? first : s.add_weight(s.chance(0.5) ? type : packed_type(i + 16), k, s.pick(1, 64));
    input &in = s.add_input(k, n), &other = s.add_input(k, n);
    const node x = s.leaf(in);
    s.expect(s.mul_mat(first, x));
    ggml_context * c = s.graph_context();
    constexpr float factor = 0.37f;
    const int64_t changed_rows = kind == 6 ? s.pick(1, n) : n;
    ggml_tensor * changed = nullptr;
    switch (kind) {
        case 1: changed = ggml_add_inplace(c, in.view, other.view); break;
        case 2: changed = ggml_mul_inplace(c, in.view, other.view); break;
        case 3:
        case 4: changed = ggml_cpy(c, other.view, in.view); break;
        case 6: changed = ggml_scale_inplace(c, ggml_view_2d(c, in.view, k, changed_rows, in.view->nb[1], 0), factor); break;
        default: changed = ggml_scale_inplace(c, in.view, factor); break;
    }
    auto want = [&in, &other, kind, changed_rows, k] {
        numbers out = in.x;
        for (size_t e = 0; e < static_cast<size_t>(changed_rows * k); e++) {
            const auto a = static_cast<float>(in.x.v[e].value), b = static_cast<float>(other.x.v[e].value);
            out.v[e] = exactly(kind == 1 ? a + b : kind == 2 ? a * b : kind == 3 || kind == 4 ? b : a * factor);
        }
        return out;
    };
    s.step({changed, want});
    s.expect(s.mul_mat(second, {kind >= 4 ? in.view : changed, want})); // by the result of the writer, or by the input's own tensor
    s.run();
}

void chains(scene & s, int64_t i) {
    const matrix_type & type = packed_type(i);
    const matrix_type & next = packed_type(s.pick(0, num_packed_types - 1));
    const int64_t k = a_depth(s, type), between = 256 * s.pick(1, 2), n = some_columns(s);
    weight &w1 = s.add_weight(type, k, between), &w2 = s.add_weight(next, between, some_rows(s));
    const node y = s.mul_mat(w1, s.leaf(s.add_input(k, n)));
    s.expect(y);
    node x = y;
    if (s.chance(0.6)) {
        ggml_context * c = s.graph_context();
        x.tensor = ggml_mul(c, ggml_rms_norm(c, y.tensor, 1e-5f), s.add_bias(between).view);
        s.describe("normed");
        s.step(x);
    }
    s.expect(s.mul_mat(w2, s.as_computed(x)));
    s.run();
}

void experts(scene & s, int64_t i) {
    const matrix_type & type = packed_type(i);
    const int64_t k = a_depth(s, type), used = s.pick(1, 8);
    // The host's repacked kernels overrun their table when one token has an expert twice; no model does that.
    const bool may_repeat = s.dev.packs[static_cast<size_t>(type.packed)];
    const int64_t num_experts = s.pick(may_repeat ? 1 : used, 16);
    const int64_t tokens = s.chance(0.5) ? s.pick(1, 6) : s.pick(1, 33);
    int64_t slots = s.chance(0.5) ? 1 : used;
    if (used % 2 == 0 && s.chance(0.1)) slots = used / 2;
    const bool distinct = used <= num_experts && (!may_repeat || s.chance(0.6));
    weight & w = s.add_weight(type, k, s.pick(1, 70), num_experts, 1, GGML_OP_MUL_MAT_ID);
    const node x = s.leaf(s.add_input(k, slots, tokens, 1, s.chance(0.3) ? layout::strided : layout::dense));
    if (distinct && s.chance(0.25)) { // chosen by the graph itself
        input & scores = s.add_input(num_experts, tokens);
        ggml_context * c = s.graph_context();
        ggml_tensor * ids = ggml_argsort_top_k(c, scores.view, static_cast<int>(used));
        s.describe("by top_k");
        s.expect(s.mul_mat_id(w, x, ids, [&scores, used, tokens] {
            std::vector<int32_t> best;
            for (int64_t t = 0; t < tokens; t++) {
                const number * score = scores.x.row(t, 0, 0);
                std::vector<int32_t> order(static_cast<size_t>(scores.x.ne[0]));
                for (size_t e = 0; e < order.size(); e++) order[e] = static_cast<int32_t>(e);
                std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return score[a].value > score[b].value; });
                best.insert(best.end(), order.begin(), order.begin() + used);
            }
            return best;
        }));
    } else {
        s.expect(s.mul_mat_id(w, x, s.add_ids(used, tokens, num_experts, distinct, s.chance(0.3) ? s.pick(1, 5) : 0)));
    }
    s.run();
    if (s.chance(0.2)) s.run();
}

// Numbers at the edges of f32 in one column; the others stay ordinary and must not notice.
void special_values(scene & s, int64_t i) {
    const matrix_type & type = packed_type(i);
    const int64_t k = a_depth(s, type), kind = i / num_packed_types % (static_cast<int64_t>(values::count) + 3);
    const bool by_expert = s.chance(0.3);
    weight & w = s.add_weight(type, k, s.pick(1, 80), by_expert ? 4 : 1, 1, by_expert ? GGML_OP_MUL_MAT_ID : GGML_OP_MUL_MAT);
    const int64_t n = s.pick(1, 24), special = s.pick(0, n - 1);
    input & in = by_expert ? s.add_input(k, 1, n) : s.add_input(k, n);
    if (w.kernel) {
        number * row = in.x.v.data() + special * k;
        const float edges[] = {std::nanf(""), INFINITY, -INFINITY};
        if (kind < 3) {
            row[s.pick(0, k - 1)] = exactly(edges[kind]);
            s.describe("%g in column %lld", static_cast<double>(edges[kind]), static_cast<long long>(special));
        } else {
            std::vector<float> x(static_cast<size_t>(k));
            fill(static_cast<values>(kind - 3), x.data(), k, s.engine());
            std::transform(x.begin(), x.end(), row, exactly);
            s.describe("%s in column %lld", values_name(static_cast<values>(kind - 3)), static_cast<long long>(special));
        }
    }
    node y = by_expert ? s.mul_mat_id(w, s.leaf(in), s.add_ids(2, n, 4, true)) : s.mul_mat(w, s.leaf(in));
    if (!by_expert && s.chance(0.3)) {
        const node b = s.leaf(s.add_bias(w.rows()));
        y = s.add(ggml_add(s.graph_context(), y.tensor, b.tensor), y, b);
    }
    s.expect(y);
    s.run();
}

// --- bytes of weights
struct span {
    size_t offset, bytes;
};
span some_range(scene & s, const weight & w) {
    const auto row = static_cast<int64_t>(w.tensor->nb[1]), size = static_cast<int64_t>(w.bytes.size());
    if (s.chance(0.3)) { // whole rows
        const int64_t first = s.pick(0, size / row - 1);
        return {static_cast<size_t>(first * row), static_cast<size_t>(s.pick(1, size / row - first) * row)};
    }
    const int64_t first = s.pick(0, size - 1);
    return {static_cast<size_t>(first), static_cast<size_t>(s.pick(1, s.chance(0.5) ? std::min<int64_t>(size - first, 100) : size - first))};
}

void change(scene & s, weight & w) {
    const span range = some_range(s, w);
    constexpr uint8_t patterns[] = {0, 0x2A, 0x9C, 0x11}; // as an f16, bf16 or f32 scale all are finite
    if (s.chance(0.4)) s.fill(w, patterns[s.pick(0, 3)], range.offset, range.bytes);
    else s.write(w, random_rows(w.type, w.k(), ggml_nrows(w.tensor), s.engine), range.offset, range.bytes);
}

void stored_bytes(scene & s, int64_t i) {
    const matrix_type & type = any_type(i);
    const int64_t k = a_depth(s, type), rows = some_rows(s), matrices = s.chance(0.3) ? s.pick(2, 4) : 1;
    const ggml_op offered = matrices > 1 ? GGML_OP_MUL_MAT_ID : GGML_OP_MUL_MAT;
    weight &w = s.add_weight(type, k, rows, matrices, 1, offered), &copy = s.add_weight(type, k, rows, matrices, 1, offered);
    s.place();
    if (!s.problem.empty()) return;
    s.expect_bytes(w, 0, w.bytes.size());
    for (int j = 0; j < 6; j++) {
        if (j > 1) change(s, w);
        const span range = some_range(s, w);
        s.expect_bytes(w, range.offset, range.bytes);
    }
    s.expect_bytes(w, 0, w.bytes.size());
    ggml_backend_tensor_copy(w.tensor, copy.tensor);
    copy.bytes = w.bytes;
    s.expect_bytes(copy, 0, copy.bytes.size());
    if (i / 20 % 3 != 0) return;
    const uint8_t value = s.chance(0.5) ? 0 : 0x2A;
    s.describe("buffer cleared to %d", value);
    ggml_backend_buffer_clear(s.weight_buffer(), value);
    std::fill(w.bytes.begin(), w.bytes.end(), value);
    s.expect_bytes(w, 0, w.bytes.size());
}

void rewritten_weight(scene & s, int64_t i) {
    const matrix_type & type = packed_type(i);
    const int64_t k = a_depth(s, type), n = some_columns(s);
    const bool by_expert = s.chance(0.3);
    weight & w = s.add_weight(type, k, some_rows(s), by_expert ? 3 : 1, 1, by_expert ? GGML_OP_MUL_MAT_ID : GGML_OP_MUL_MAT);
    const node x = s.leaf(by_expert ? s.add_input(k, 1, n) : s.add_input(k, n));
    s.expect(by_expert ? s.mul_mat_id(w, x, s.add_ids(2, n, 3, true)) : s.mul_mat(w, x));
    s.place();
    for (int round = 0; round < 2 && s.problem.empty(); round++) {
        if (round > 0 || s.chance(0.5)) change(s, w);
        s.run();
    }
}

void rows_and_product(scene & s, int64_t i) {
    const matrix_type & type = any_type(i);
    const int64_t k = a_depth(s, type);
    weight & w = s.add_weight(type, k, some_rows(s));
    const bool rows_first = s.chance(0.5);
    input &ids = s.add_ids(s.pick(1, 8), 1, w.rows(), false), &in = s.add_input(k, s.pick(1, 12));
    if (rows_first) s.expect(s.get_rows(w, ids));
    s.expect(s.mul_mat(w, s.leaf(in)));
    if (!rows_first) s.expect(s.get_rows(w, ids));
    s.run();
    if (!s.problem.empty()) return;
    change(s, w); // the copy as plain rows must follow
    s.run();
    s.expect_bytes(w, 0, w.bytes.size());
}

// Some rows, or one of several matrices: views are the host's, from a copy as plain rows.
void views_of_weights(scene & s, int64_t i) {
    const matrix_type & type = packed_type(i);
    const int64_t k = a_depth(s, type), rows = s.pick(2, 100), matrices = s.chance(0.4) ? 3 : 1;
    weight & w = s.add_weight(type, k, rows, matrices);
    const int64_t first = matrices > 1 ? rows * s.pick(0, 2) : s.pick(0, rows - 1);
    const int64_t taken = matrices > 1 ? rows : s.pick(1, rows - first);
    const node x = s.leaf(s.add_input(k, s.pick(1, 10)));
    ggml_tensor * view = ggml_view_2d(s.graph_context(), w.tensor, k, taken, w.tensor->nb[1], static_cast<size_t>(first) * w.tensor->nb[1]);
    s.describe("rows [%lld, +%lld)", static_cast<long long>(first), static_cast<long long>(taken));
    s.expect(s.mul_mat(w, view, first, x, computed_by::host));
    if (matrices == 1 && s.chance(0.5)) s.expect(s.mul_mat(w, x));
    s.run();
    if (!s.problem.empty() || s.chance(0.5)) return;
    change(s, w);
    s.run();
}

// What no kernel of ours takes.
void left_to_host(scene & s, int64_t i) {
    const int64_t kind = i % 5;
    const matrix_type & type = kind < 2 ? other_type(i / 5) : kind == 4 ? packed_types[num_packed_types - 3] : packed_type(i / 5);
    const int64_t k = a_depth(s, type), rows = s.pick(1, 80), n = s.pick(1, 12);
    if (kind == 1) {
        weight & w = s.add_weight(type, k, rows, 4, 1, GGML_OP_MUL_MAT_ID);
        s.expect(s.mul_mat_id(w, s.leaf(s.add_input(k, 1, n)), s.add_ids(2, n, 4, true)));
    } else if (kind == 3) {
        weight & w = s.add_weight(type, k, rows, 2, 2);
        s.expect(s.mul_mat(w, s.leaf(s.add_input(k, n, 4, 2))));
    } else if (kind == 4) { // activations in f16
        weight & w = s.add_weight(type, k, rows);
        const node x = s.leaf(s.add_input(k, n));
        ggml_tensor * half = ggml_cast(s.graph_context(), x.tensor, GGML_TYPE_F16);
        s.expect(s.mul_mat(w, w.tensor, 0, {half, x.want}, computed_by::host));
    } else {
        weight & w = s.add_weight(type, k, rows, 1, 1, kind == 2 ? GGML_OP_GET_ROWS : GGML_OP_MUL_MAT);
        s.expect(s.mul_mat(w, s.leaf(s.add_input(k, n))));
    }
    s.run();
}

const kind_of_case kinds[] = {
    {"product", product, 640},
    {"columns of views", columns_of_views, 240},
    {"batches", batches, 160},
    {"sums", sums, 26 * 16},
    {"shared inputs", shared_inputs, 160},
    {"overwritten input", overwritten_input, 14 * 16},
    {"chains", chains, 96},
    {"experts", experts, 400},
    {"special values", special_values, 22 * 16},
    {"stored bytes", stored_bytes, 240},
    {"rewritten weight", rewritten_weight, 160},
    {"rows and product", rows_and_product, 100},
    {"views of weights", views_of_weights, 64},
    {"left to the host", left_to_host, 120},
};

// --- the run ------------------------------------------------------------------------------------------------------------------------
// Which types the plugin packs here; every type that has a kernel for this CPU, unless a knob of the caller's takes kernels away.
bool find_packed_types(device & d) {
    bool good = true;
    for (const matrix_type & type : packed_types) {
        const uint64_t before = d.count_of(counter::packed_bytes);
        scene s(d, seed(), 1000000 + static_cast<uint64_t>(type.host_type));
        s.add_weight(type, 256, 20);
        s.place();
        bool & packs = d.packs[static_cast<size_t>(type.packed)];
        packs = d.count_of(counter::packed_bytes) > before;
        const bool free = std::getenv("GGML_ALLOY_ISA") == nullptr && std::getenv("GGML_ALLOY_KERNELS") == nullptr;
        if (free && packs != (find_matmul(type.packed) != nullptr)) {
            std::printf("%s: %s, but there is %s kernel for it\n", type.name, packs ? "packed" : "not packed", packs ? "no" : "a");
            good = false;
        }
    }
    return good;
}

bool check_totals(const device & d, bool whole) {
    const bool packs = std::find(d.packs.begin(), d.packs.end(), true) != d.packs.end();
    const uint64_t own = d.count_of(counter::kernel_steps), fused = d.count_of(counter::fused_nodes);
    std::printf("kernel steps %llu, fused nodes %llu, delegated MUL_MAT %llu, MUL_MAT_ID %llu\n", static_cast<unsigned long long>(own),
                static_cast<unsigned long long>(fused), static_cast<unsigned long long>(d.delegated(GGML_OP_MUL_MAT)),
                static_cast<unsigned long long>(d.delegated(GGML_OP_MUL_MAT_ID)));
    if (whole && packs && (own == 0 || fused == 0)) {
        std::puts("FAILED: no kernel step or no fusion at all");
        return false;
    }
    if (d.count_of(counter::packed_bytes) == 0) return true;
    std::puts("FAILED: packed bytes are still counted after all weights are gone");
    return false;
}

} // namespace
} // namespace alloy::test

int main(int argc, char ** argv) {
    using namespace alloy::test;
    return run_program({"mul_mat_cases", kinds, find_packed_types, check_totals}, argc, argv);
}
#endif
