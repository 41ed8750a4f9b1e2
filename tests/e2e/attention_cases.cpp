// attention_cases [--case N]: hundreds of small graphs around FLASH_ATTN_EXT on the plugin in the unmodified host, each compared with
// double precision. Caches, their views, masks and writes are laid out as llama.cpp does.
#include "support/scene_cases.h"

#ifndef ALLOY_HOST_HEADERS
int main() { return alloy::test::without_headers(); }
#else
#include "support/host_scene.h"

#include <array>
#include <string>
#include <vector>

namespace alloy::test {
namespace {

// --- who computes -------------------------------------------------------------------------------------------------------------------
// What the plugin may leave to the host; everything else must run on kernels of its own.
struct delegated_shape {
    const char * why;
    bool (*matches)(const ggml_tensor & op);
};
constexpr std::array<delegated_shape, 0> delegated_shapes{};

computed_by who_computes(const ggml_tensor & op) {
    auto matches = [&](const delegated_shape & d) { return d.matches(op); };
    return std::any_of(delegated_shapes.begin(), delegated_shapes.end(), matches) ? computed_by::host : computed_by::kernel;
}

bool is_half_or_float(ggml_type type) { return type == GGML_TYPE_F32 || type == GGML_TYPE_F16; }

// The host's kernel for prompts adds the mask to scores of hidden cells instead of skipping them: NaN in one reaches every row.
bool reads_hidden_cells(const ggml_tensor & op) {
    const ggml_tensor *q = op.src[0], *k = op.src[1], *v = op.src[2];
    return who_computes(op) == computed_by::host && is_half_or_float(k->type) && k->type == v->type && q->ne[1] >= 64;
}

// --- the oracle ---------------------------------------------------------------------------------------------------------------------
const ggml_tensor * root_of(const ggml_tensor * t) { return t->view_src != nullptr ? t->view_src : t; }

void decode_row(ggml_type type, const uint8_t * bytes, float * row, int64_t n) {
    if (type == GGML_TYPE_F32) std::memcpy(row, bytes, static_cast<size_t>(n) * 4);
    else ggml_get_type_traits(type)->to_float(bytes, row, n);
}

void encode_row(ggml_type type, const float * row, uint8_t * bytes, int64_t n) {
    if (type == GGML_TYPE_F32) std::memcpy(bytes, row, static_cast<size_t>(n) * 4);
    else ggml_get_type_traits(type)->from_float_ref(row, bytes, n);
}

// A tensor's elements as they are in memory now, i0 fastest.
struct elements {
    int64_t ne[4];
    std::vector<double> v;

    elements(const scene & s, const ggml_tensor * t) : ne{t->ne[0], t->ne[1], t->ne[2], t->ne[3]} {
        const std::vector<uint8_t> bytes = s.bytes_of(root_of(t));
        std::vector<float> row(static_cast<size_t>(ne[0]));
        v.reserve(static_cast<size_t>(ggml_nelements(t)));
        for_each_row(t, [&](int64_t, int64_t, int64_t, size_t at) {
            decode_row(t->type, bytes.data() + t->view_offs + at, row.data(), ne[0]);
            v.insert(v.end(), row.begin(), row.end());
        });
    }
    const double * row(int64_t i1, int64_t i2, int64_t i3) const { return v.data() + ne[0] * (i1 + ne[1] * (i2 + ne[2] * i3)); }
};

double squared(const double * x, int64_t n) { return dot(x, x, n); }

// How far results may be off.
struct tolerance {
    computed_by who;
    bool int8;

    explicit tolerance(const ggml_tensor & op) : who(who_computes(op)) {
        const bool quantised = ggml_is_quantized(op.src[1]->type) || ggml_is_quantized(op.src[2]->type);
        int8 = who == computed_by::kernel && quantised && op.src[0]->ne[1] > 16;
    }

    // Of an output: from the largest |value| that it averages, the largest |logit| with its mask, the size of logits before it, and the
    // spread, which is the size of the same average of independent values with mean zero.
    double bound(double largest_value, double largest_logit, double logit_size, double spread) const {
        // Twice the contract of family attention, which is about logits up to 64: what is larger, by mask and ALiBi, rounds in proportion.
        const double exact = 2e-5 * largest_value * std::max(1.0, largest_logit / 64) + 1e-30;
        // The host rounds Q to the type that goes with K (at worst 8 bits) and sums f16 values in f16.
        if (who == computed_by::host) return exact + largest_value * (0.01 + 0.03 * logit_size);
        if (!int8) return exact;
        // A row in 8 bits deviates by 0.009 of its size: twice for a logit (which beyond attention_error_limit is computed in f32), once
        // for V, and as much again for weights in 8 bits. Six times what these give together, and their rms below a third of that (0.03
        // of the spread): INT8 mode in double precision, all cells in it, comes to 0.77 and 0.22 of the bound on these data. One
        // percent of the largest value more, because the rounding of Q is common to all cells: where keys tell of their values
        // (values in keys, types with a minimum) the deviations do not average out.
        const double logit = std::min(0.013 * logit_size, 0.25);
        return exact + 0.01 * largest_value + 6 * spread * std::sqrt(logit * logit + 2 * 0.009 * 0.009);
    }
    double rms() const { return int8 ? 0.3 : 1; }
};

// What FLASH_ATTN_EXT must give for what its sources hold. A cell whose mask is -inf is never looked at.
numbers attention_of(const scene & s, const ggml_tensor & op) {
    const elements q(s, op.src[0]), k(s, op.src[1]), v(s, op.src[2]);
    const elements mask = op.src[3] != nullptr ? elements(s, op.src[3]) : q, sinks = op.src[4] != nullptr ? elements(s, op.src[4]) : q;
    float params[3];
    std::memcpy(params, op.op_params, sizeof(params));
    const double scale = params[0], max_bias = params[1], softcap = params[2];
    const int64_t d_k = k.ne[0], d_v = v.ne[0], cells = k.ne[1], tokens = q.ne[1], heads = q.ne[2];
    const double low_heads = std::exp2(std::floor(std::log2(static_cast<double>(heads))));
    const tolerance may(op);
    numbers out(d_v, heads, tokens, q.ne[3]);
    out.rms = may.rms();
    std::vector<double> p(static_cast<size_t>(cells)), sum(static_cast<size_t>(d_v)), largest(static_cast<size_t>(d_v));
    std::vector<double> k_size(static_cast<size_t>(cells)), v_size(static_cast<size_t>(cells));
    for (int64_t stream = 0; stream < q.ne[3]; stream++)
        for (int64_t head = 0; head < heads; head++) {
            const int64_t k_head = head / (heads / k.ne[2]), v_head = head / (heads / v.ne[2]);
            const auto h = static_cast<double>(head);
            double slope = 1;
            if (max_bias > 0 && h < low_heads) slope = std::exp2(-max_bias / low_heads * (h + 1));
            else if (max_bias > 0) slope = std::exp2(-max_bias / 2 / low_heads * (2 * (h - low_heads) + 1));
            for (int64_t c = 0; c < cells; c++) {
                k_size[static_cast<size_t>(c)] = squared(k.row(c, k_head, stream), d_k);
                v_size[static_cast<size_t>(c)] = squared(v.row(c, v_head, stream), d_v);
            }
            for (int64_t token = 0; token < tokens; token++) {
                const double * hides = op.src[3] != nullptr ? mask.row(token, head % mask.ne[2], stream % mask.ne[3]) : nullptr;
                const double * row = q.row(token, head, stream);
                const double sink = op.src[4] != nullptr ? sinks.v[static_cast<size_t>(head)] : -INFINITY;
                double top = sink, longest = 0;
                bool is_nan = false;
                for (int64_t c = 0; c < cells; c++) {
                    double & logit = p[static_cast<size_t>(c)];
                    logit = -INFINITY;
                    if (hides != nullptr && hides[c] == -INFINITY) continue;
                    logit = scale * dot(row, k.row(c, k_head, stream), d_k);
                    if (softcap != 0) logit = softcap * std::tanh(logit / softcap);
                    if (hides != nullptr) logit += slope * hides[c];
                    is_nan = is_nan || std::isnan(logit);
                    top = std::max(top, logit);
                    longest = std::max(longest, k_size[static_cast<size_t>(c)]);
                }
                double total = sink == -INFINITY ? 0 : std::exp(sink - top), spread = 0;
                std::fill(sum.begin(), sum.end(), 0);
                std::fill(largest.begin(), largest.end(), 0);
                for (int64_t c = 0; c < cells && !is_nan; c++) {
                    if (p[static_cast<size_t>(c)] == -INFINITY) continue;
                    const double weight = std::exp(p[static_cast<size_t>(c)] - top), *value = v.row(c, v_head, stream);
                    total += weight;
                    spread += weight * weight * v_size[static_cast<size_t>(c)];
                    for (size_t j = 0; j < sum.size(); j++) {
                        sum[j] += weight * value[j];
                        largest[j] = std::max(largest[j], std::fabs(value[j]));
                    }
                }
                const double logit_size = std::fabs(scale) * std::sqrt(squared(row, d_k) * longest / static_cast<double>(d_k));
                spread = total > 0 ? std::sqrt(spread / static_cast<double>(d_v)) / total : 0;
                number * result = out.row(head, token, stream);
                for (size_t j = 0; j < sum.size(); j++) {
                    if (is_nan) result[j].kind = finiteness::nan;
                    else if (total > 0) result[j] = {sum[j] / total, may.bound(largest[j], std::fabs(top), logit_size, spread)};
                }
            }
        }
    return out;
}

// --- shapes -------------------------------------------------------------------------------------------------------------------------
constexpr ggml_type cell_types[] = {GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q8_0,  GGML_TYPE_Q4_0,
                                    GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_IQ4_NL};
constexpr int64_t num_cell_types = std::size(cell_types);

constexpr struct {
    int64_t k, v;
} head_sizes[] = {{64, 64}, {80, 80}, {96, 96}, {112, 112}, {128, 128}, {192, 192}, {256, 256}, {192, 128}, {576, 512}};
constexpr int64_t num_head_sizes = std::size(head_sizes);

enum class sees { everything, no_future, window, holes, some_rows_nothing, weighted, count };
constexpr const char * names_of_sees[] = {"no mask", "causal", "window", "holes", "hidden rows", "weighted"};

struct shape {
    ggml_type type_k, type_v;
    int64_t d_k, d_v, kv_heads, group, tokens, cells, streams;
    sees mask;
    int64_t mask_heads = 1, mask_streams = 1;
    float scale, max_bias = 0, softcap = 0;
    bool sinks = false;

    int64_t heads() const { return kv_heads * group; }
    int64_t work() const { return (d_k + d_v) * heads() * tokens * cells * streams; }
};

template <size_t n> int64_t one_of(scene & s, const int64_t (&choices)[n]) { return choices[s.pick(0, n - 1)]; }

// Of types and head size chosen by the caller; the rest by chance, within what an oracle computes in tens of milliseconds.
shape a_shape(scene & s, ggml_type type_k, ggml_type type_v, int64_t head_size) {
    shape x{};
    x.type_k = type_k;
    x.type_v = type_v;
    x.d_k = head_sizes[head_size % num_head_sizes].k;
    x.d_v = head_sizes[head_size % num_head_sizes].v;
    if (ggml_is_quantized(type_k) || ggml_is_quantized(type_v)) { // whole blocks of 32
        x.d_k = (x.d_k + 31) / 32 * 32;
        x.d_v = (x.d_v + 31) / 32 * 32;
    }
    x.group = one_of(s, {1, 2, 3, 4, 7, 8, 16, 32});
    x.kv_heads = s.pick(1, 3);
    x.tokens = one_of(s, {1, 1, 2, 3, 8, 9, 33, 70, 130});
    x.cells = s.chance(0.2) ? s.pick(1, 20) : s.chance(0.4) ? 64 * s.pick(1, 9) : s.pick(1, 600);
    x.streams = s.chance(0.7) ? 1 : s.chance(0.5) ? 2 : 4;
    constexpr int64_t most_work = 100'000'000;
    while (x.work() > most_work) {
        int64_t & shrunk = x.kv_heads > 1 ? x.kv_heads : x.streams > 1 ? x.streams : x.group > 1 && s.chance(0.5) ? x.group : x.cells;
        shrunk /= 2;
    }
    x.mask = static_cast<sees>(s.pick(0, static_cast<int64_t>(sees::count) - 1));
    if (x.mask != sees::everything) {
        if (s.chance(0.1)) x.mask_heads = s.chance(0.5) ? x.heads() : x.kv_heads;
        x.mask_streams = s.chance(0.1) ? 1 : x.streams;
        if (s.chance(0.15)) x.max_bias = 8;
    }
    if (s.chance(0.15)) x.softcap = s.chance(0.5) ? 50 : 5;
    x.sinks = s.chance(0.2);
    x.scale = s.chance(0.2) ? 1 : 1 / std::sqrt(static_cast<float>(x.d_k));
    return x;
}
shape a_shape(scene & s, int64_t i) {
    const ggml_type type = cell_types[i % num_cell_types];
    return a_shape(s, type, type, i / num_cell_types);
}

// --- one attention of a graph -------------------------------------------------------------------------------------------------------
// Memory of the device that holds keys or values, and what is in it.
struct cell_memory {
    ggml_tensor * whole;
    std::vector<ggml_tensor *> streams; // of a cache
    std::vector<uint8_t> bytes;
};

// As llama_kv_cache: [heads * d, cells, streams] and a view of each stream.
cell_memory a_cache(scene & s, const char * name, ggml_type type, int64_t row, int64_t cells, int64_t streams) {
    cell_memory m{ggml_new_tensor_3d(s.cache_context(), type, row, cells, streams), {}, {}};
    ggml_set_name(m.whole, name);
    for (int64_t i = 0; i < streams; i++) {
        m.streams.push_back(ggml_view_2d(s.cache_context(), m.whole, row, cells, m.whole->nb[1], static_cast<size_t>(i) * m.whole->nb[2]));
    }
    m.bytes.resize(ggml_nbytes(m.whole));
    return m;
}

// Rows that the graph itself writes to a cache.
struct written_rows {
    cell_memory * to;
    input *rows, *at;
};

class attention {
  public:
    attention(scene & the_scene, const shape & the_shape) : s(the_scene), x(the_shape), dead_(static_cast<size_t>(x.mask_streams)) {
        s.describe("k %s [%lld], v %s [%lld]", ggml_type_name(x.type_k), static_cast<long long>(x.d_k), ggml_type_name(x.type_v),
                   static_cast<long long>(x.d_v));
        s.describe("%lld x %lld heads, %lld tokens, %lld cells, %lld streams", static_cast<long long>(x.kv_heads),
                   static_cast<long long>(x.group), static_cast<long long>(x.tokens), static_cast<long long>(x.cells),
                   static_cast<long long>(x.streams));
        s.describe("%s [%lld,%lld], scale %g, max_bias %g, softcap %g%s", names_of_sees[static_cast<size_t>(x.mask)],
                   static_cast<long long>(x.mask_heads), static_cast<long long>(x.mask_streams), static_cast<double>(x.scale),
                   static_cast<double>(x.max_bias), static_cast<double>(x.softcap), x.sinks ? ", sinks" : "");
    }
    attention(const attention &) = delete;
    attention & operator=(const attention &) = delete;

    // --- the graph
    // Caches of a layer with room for more cells and streams than are read.
    void use_caches(int layer = 0, bool v_in_k = false) {
        cache_cells_ = x.cells + (s.chance(0.5) ? s.pick(0, 70) : 0);
        const int64_t all_streams = x.streams + (s.chance(0.2) ? s.pick(0, 2) : 0);
        first_stream_ = s.pick(0, all_streams - x.streams);
        auto make = [&](char kind, ggml_type type, int64_t d) {
            const std::string name = std::string("cache_") + kind + "_l" + std::to_string(layer);
            return a_cache(s, name.c_str(), type, d * x.kv_heads, cache_cells_, all_streams);
        };
        auto read = [this](const cell_memory & m, int64_t d) {
            const size_t head = ggml_row_size(m.whole->type, d), cell = m.whole->nb[1], stream = m.whole->nb[2];
            ggml_tensor * view = ggml_view_4d(s.graph_context(), m.whole, d, x.kv_heads, x.cells, x.streams, head, cell, stream,
                                              stream * static_cast<size_t>(first_stream_));
            return ggml_permute(s.graph_context(), view, 0, 2, 1, 3);
        };
        keys_ = make('k', x.type_k, x.d_k);
        if (!v_in_k) values_ = make('v', x.type_v, x.d_v);
        view_cells_ = [this, read, v_in_k] {
            k = read(keys_, x.d_k);
            v = v_in_k ? ggml_view_4d(s.graph_context(), k, x.d_v, k->ne[1], k->ne[2], k->ne[3], k->nb[1], k->nb[2], k->nb[3], 0)
                       : read(values_, x.d_v);
        };
        s.describe("cache of %lld cells, stream %lld of %lld%s", static_cast<long long>(cache_cells_),
                   static_cast<long long>(first_stream_), static_cast<long long>(all_streams), v_in_k ? ", values within keys" : "");
    }

    // As test-backend-ops: tensors of their own, or the first half of larger ones, dense or permuted.
    void use_plain_tensors() {
        const bool half = s.chance(0.5), permuted = s.chance(0.5);
        auto make = [&](const char * name, ggml_type type, int64_t d) {
            ggml_context * c = s.cache_context();
            const int64_t n1 = permuted ? x.kv_heads : x.cells, n2 = permuted ? x.cells : x.kv_heads;
            cell_memory m{ggml_new_tensor_4d(c, type, d, half ? 2 * n1 : n1, n2, x.streams), {}, {}};
            ggml_set_name(m.whole, name);
            m.bytes.resize(ggml_nbytes(m.whole));
            return m;
        };
        auto read = [this, half, permuted](const cell_memory & m) {
            ggml_tensor * t = m.whole;
            if (half) t = ggml_view_4d(s.graph_context(), t, t->ne[0], t->ne[1] / 2, t->ne[2], t->ne[3], t->nb[1], t->nb[2], t->nb[3], 0);
            return permuted ? ggml_permute(s.graph_context(), t, 0, 2, 1, 3) : t;
        };
        keys_ = make("k", x.type_k, x.d_k);
        values_ = make("v", x.type_v, x.d_v);
        view_cells_ = [this, read] {
            k = read(keys_);
            v = read(values_);
        };
        s.describe("plain tensors%s%s", half ? ", half of larger ones" : "", permuted ? ", permuted" : "");
    }

    // As models without a cache: f32 of the graph, cast.
    void use_cast() {
        auto make = [this](ggml_type type, int64_t d) {
            input & in = s.add_input(d, x.kv_heads, x.cells, x.streams, s.chance(0.3) ? layout::strided : layout::dense);
            free_inputs_.push_back(&in);
            ggml_tensor * t = ggml_cast(s.graph_context(), ggml_permute(s.graph_context(), in.view, 0, 2, 1, 3), type);
            ggml_set_output(t); // the oracle reads it
            return t;
        };
        view_cells_ = [this, make] {
            k = make(x.type_k, x.d_k);
            v = make(x.type_v, x.d_v);
        };
        s.describe("cast in the graph");
    }

    // SET_ROWS to both caches before they are read, as llama_kv_cache: rows of heads side by side, numbered over all streams.
    void write_in_graph() {
        for (cell_memory * m : {&keys_, &values_}) {
            if (m->whole == nullptr) continue;
            const int64_t d = m->whole->ne[0] / x.kv_heads, n = x.tokens * x.streams;
            input & rows = s.add_input(d, x.kv_heads, n);
            free_inputs_.push_back(&rows);
            input & at = s.add_host_bytes(s.chance(0.8) ? GGML_TYPE_I64 : GGML_TYPE_I32, n, 1, 1, 1);
            ggml_context * c = s.graph_context();
            ggml_tensor * flat = ggml_view_2d(c, rows.view, m->whole->ne[0], n, rows.view->nb[2], 0);
            ggml_tensor * cache = m->whole;
            if (cache->ne[2] > 1) cache = ggml_reshape_2d(c, cache, cache->ne[0], cache->ne[1] * cache->ne[2]);
            s.step({ggml_set_rows(c, cache, flat, at.view), nullptr});
            written_.push_back({m, &rows, &at});
        }
        s.describe("%lld rows written in the graph", static_cast<long long>(x.tokens * x.streams));
    }

    // `q`: [d_k, heads, tokens, streams] of the graph, or null for one more input.
    ggml_tensor * build(ggml_tensor * q = nullptr) {
        ggml_context * c = s.graph_context();
        if (q == nullptr) {
            input & in = s.add_input(x.d_k, x.heads(), x.tokens * x.streams, 1, s.chance(0.3) ? layout::strided : layout::dense);
            queries_ = &in;
            q = in.view;
            if (s.chance(0.3)) { // made in the graph
                q = ggml_scale(c, ggml_cont(c, q), 0.5f);
                ggml_set_output(q);
                s.describe("q scaled in the graph");
            }
            const size_t stream = q->nb[2] * static_cast<size_t>(x.tokens);
            q = ggml_view_4d(c, q, q->ne[0], q->ne[1], x.tokens, x.streams, q->nb[1], q->nb[2], stream, 0);
        }
        view_cells_();
        if (x.mask != sees::everything) mask_ = &s.add_host_bytes(GGML_TYPE_F16, x.cells, x.tokens, x.mask_heads, x.mask_streams);
        ggml_tensor * mask = mask_ != nullptr ? mask_->view : nullptr;
        op = ggml_flash_attn_ext(c, ggml_permute(c, q, 0, 2, 1, 3), k, v, mask, x.scale, x.max_bias, x.softcap);
        if (s.chance(0.7)) ggml_prec_set_acc(op, GGML_PREC_F32);
        if (mask_ != nullptr && s.chance(0.05)) ggml_flash_attn_ext_set_n_kv_max(op, static_cast<int32_t>(x.cells)); // a hint
        if (x.sinks) {
            sinks_ = s.chance(0.5) ? &s.add_bias(x.heads()) : &s.add_input(x.heads(), 1);
            ggml_flash_attn_ext_add_sinks(op, sinks_->view);
        }
        s.note(GGML_OP_FLASH_ATTN_EXT, who_computes(*op));
        s.expect({op, [this] { return attention_of(s, *op); }});
        return op;
    }

    // --- data
    // New everything: cells by way of the device's buffer.
    void roll() {
        place();
        choose_written();
        choose_dead();
        fill_cells();
        roll_inputs();
    }
    // As the next tokens of llama.cpp: caches stay, the graph writes to cells that were dead so far.
    void advance() {
        choose_written();
        for (auto & dead : dead_) {
            for (const int64_t c : written_cells_) dead[static_cast<size_t>(c)] = false;
        }
        roll_inputs();
    }

    void check_memory() {
        for (cell_memory * m : {&keys_, &values_}) {
            if (m->whole != nullptr && s.problem.empty()) check_memory(*m);
        }
    }

    // What a visible cell gets in place of its keys.
    void spoil_keys(int64_t cell, int64_t head, int64_t stream) {
        const int64_t at[] = {cell, head, stream};
        size_t offset = k->view_offs;
        for (int d = 0; d < 3; d++) offset += static_cast<size_t>(at[d]) * k->nb[d + 1];
        std::memset(keys_.bytes.data() + offset, 0xFF, ggml_row_size(k->type, k->ne[0]));
        upload(keys_);
    }

    // llama_memory_seq_cp between streams.
    void copy_stream(int64_t from, int64_t to) {
        for (cell_memory * m : {&keys_, &values_}) {
            if (m->whole == nullptr) continue;
            ggml_tensor ** first = m->streams.data() + first_stream_;
            ggml_tensor *a = first[from], *b = first[to];
            ggml_backend_tensor_copy(a, b);
            std::memcpy(m->bytes.data() + b->view_offs, m->bytes.data() + a->view_offs, ggml_nbytes(a));
        }
        if (mask_ != nullptr && x.mask_streams > 1) dead_[static_cast<size_t>(to)] = dead_[static_cast<size_t>(from)];
        roll_inputs();
        s.describe("stream %lld copied to %lld", static_cast<long long>(from), static_cast<long long>(to));
    }

    // llama_memory_clear with data.
    void clear() {
        ggml_backend_buffer_clear(keys_.whole->buffer, 0);
        for (cell_memory * m : {&keys_, &values_}) std::fill(m->bytes.begin(), m->bytes.end(), uint8_t{0});
        for (auto & dead : dead_) std::fill(dead.begin(), dead.end(), false); // zeros may be seen
        roll_inputs();
        s.describe("cleared");
    }

    scene & s;
    const shape x;
    ggml_tensor *k = nullptr, *v = nullptr, *op = nullptr;

  private:
    void place() {
        if (placed_) return;
        placed_ = true;
        if (keys_.whole != nullptr && keys_.whole->buffer == nullptr) s.place();
    }

    // The same cells in each stream.
    void choose_written() {
        if (written_.empty()) return;
        const auto cells = static_cast<size_t>(x.cells);
        std::vector<int64_t> order(cells);
        for (size_t c = 0; c < cells; c++) order[c] = static_cast<int64_t>(c);
        if (s.chance(0.5)) { // a run of cells, wherever the moving head stands
            std::rotate(order.begin(), order.begin() + s.pick(0, x.cells - 1), order.end());
        } else {
            std::shuffle(order.begin(), order.end(), s.engine);
        }
        written_cells_.assign(order.begin(), order.begin() + x.tokens);
        for (const written_rows & w : written_) {
            const size_t size = ggml_type_size(w.at->memory->type);
            for (int64_t n = 0; n < x.tokens * x.streams; n++) {
                const int64_t cell = written_cell(n);
                std::memcpy(w.at->bytes.data() + static_cast<size_t>(n) * size, &cell, size); // its low half for I32
            }
        }
    }

    // Where row n goes, counted over all streams of the cache.
    int64_t written_cell(int64_t n) const {
        return (first_stream_ + n / x.tokens) * cache_cells_ + written_cells_[static_cast<size_t>(n % x.tokens)];
    }

    // Cells that every row of their stream's mask hides: a tail, a block, some here and there.
    void choose_dead() {
        for (auto & dead : dead_) {
            dead.assign(static_cast<size_t>(x.cells), false);
            if (mask_ == nullptr) continue;
            const int64_t tail = s.chance(0.5) ? s.pick(0, x.cells) : x.cells, block = s.chance(0.4) ? s.pick(0, x.cells / 64) : -1;
            const double here_and_there = s.chance(0.5) ? 0.2 : 0;
            for (int64_t c = 0; c < x.cells; c++) dead[static_cast<size_t>(c)] = c >= tail || c / 64 == block || s.chance(here_and_there);
            for (const int64_t c : written_cells_) dead[static_cast<size_t>(c)] = false;
        }
    }

    // Rubbish everywhere, then rows where cells live.
    void fill_cells() {
        const int64_t outlier = s.chance(0.2) ? s.pick(0, x.d_k - 1) : -1; // a channel of keys that is larger than the others
        const float mean = s.chance(0.2) ? 1.0f : 0.0f;                    // of values
        for (cell_memory * m : {&keys_, &values_}) {
            if (m->whole == nullptr) continue;
            fill_with_rubbish(*m);
            const bool is_keys = m == &keys_;
            const ggml_tensor * t = is_keys ? k : v;
            std::vector<float> row(static_cast<size_t>(t->ne[0]));
            for_each_row(t, [&](int64_t cell, int64_t, int64_t stream, size_t at) {
                if (dead_[static_cast<size_t>(stream % x.mask_streams)][static_cast<size_t>(cell)]) return;
                for (float & e : row) e = s.normal() + (is_keys ? 0 : mean);
                if (is_keys && outlier >= 0) row[static_cast<size_t>(outlier)] *= 6;
                encode_row(t->type, row.data(), m->bytes.data() + t->view_offs + at, t->ne[0]);
            });
            upload(*m);
        }
    }

    void fill_with_rubbish(cell_memory & m) {
        constexpr uint8_t patterns[][2] = {{0x2A, 0x2A}, {0x11, 0x11}, {0, 0}, {0xFF, 0xFF}, {0x7F, 0x7F}, {0, 0x7C}, {0x80, 0x7F}};
        constexpr int64_t finite = 3; // the rest is NaN or Inf in some type
        const uint8_t * pattern = patterns[s.pick(0, reads_hidden_cells(*op) ? finite - 1 : std::ssize(patterns) - 1)];
        for (size_t i = 0; i < m.bytes.size(); i++) m.bytes[i] = pattern[i % 2];
        s.describe("rubbish %02x%02x", pattern[0], pattern[1]);
    }

    // As one, or as a state is restored: runs of cells through the views of streams.
    void upload(const cell_memory & m) {
        if (m.streams.empty() || s.chance(0.5)) return ggml_backend_tensor_set(m.whole, m.bytes.data(), 0, m.bytes.size());
        const auto cell = static_cast<int64_t>(m.whole->nb[1]);
        for (ggml_tensor * stream : m.streams) {
            for (int64_t c = 0, n; c < cache_cells_; c += n) {
                n = s.pick(1, cache_cells_ - c);
                const uint8_t * from = m.bytes.data() + stream->view_offs + c * cell;
                ggml_backend_tensor_set(stream, from, static_cast<size_t>(c * cell), static_cast<size_t>(n * cell));
            }
        }
    }

    void roll_inputs() {
        if (queries_ != nullptr) {
            // Flat, usual and pointed softmax, whatever the scale.
            const float size = (s.chance(0.6) ? 1.0f : s.chance(0.5) ? 0.1f : 6.0f) / (x.scale * std::sqrt(static_cast<float>(x.d_k)));
            for (number & e : queries_->x.v) e = exactly(s.normal() * size);
        }
        for (input * in : free_inputs_) {
            for (number & e : in->x.v) e = exactly(s.normal());
        }
        if (sinks_ != nullptr) {
            for (number & e : sinks_->x.v) e = exactly(s.normal() * 4);
        }
        if (mask_ != nullptr) roll_mask();
    }

    void roll_mask() {
        const uint16_t hidden = ggml_fp32_to_fp16(-INFINITY);
        std::vector<uint16_t> mask;
        for (int64_t stream = 0; stream < x.mask_streams; stream++)
            for (int64_t head = 0; head < x.mask_heads; head++) {
                const int64_t first = s.chance(0.5) ? std::max<int64_t>(0, x.cells - x.tokens) : s.pick(0, x.cells - 1);
                const int64_t turn = x.mask == sees::window ? s.pick(0, x.cells - 1) : 0; // cells of a window are used in turn
                const int64_t window = s.pick(1, 100);
                for (int64_t token = 0; token < x.tokens; token++) {
                    const bool sees_nothing = x.mask == sees::some_rows_nothing && s.chance(0.4);
                    for (int64_t c = 0; c < x.cells; c++) {
                        const int64_t distance = first + token - (c + turn) % x.cells;
                        bool visible = !dead_[static_cast<size_t>(stream)][static_cast<size_t>(c)] && !sees_nothing;
                        if (x.mask == sees::no_future || x.mask == sees::window) visible = visible && distance >= 0;
                        if (x.mask == sees::window) visible = visible && distance < window;
                        if (x.mask == sees::holes) visible = visible && s.chance(0.5);
                        const float value = x.max_bias > 0             ? -static_cast<float>(std::abs(distance))
                                            : x.mask == sees::weighted ? std::uniform_real_distribution<float>(-4, 1)(s.engine)
                                                                       : 0;
                        mask.push_back(visible ? ggml_fp32_to_fp16(value) : hidden);
                    }
                }
            }
        std::memcpy(mask_->bytes.data(), mask.data(), mask_->bytes.size());
    }

    // What the graph wrote is there, up to the type's precision; all else is as it was, byte for byte, or dropped: cells beyond those that
    // a graph reads are not in use.
    void check_memory(cell_memory & m) {
        const std::vector<uint8_t> now = s.bytes_of(m.whole);
        const size_t size = m.whole->nb[1];
        std::vector<float> row(static_cast<size_t>(m.whole->ne[0]));
        for (const written_rows & w : written_) {
            if (w.to != &m) continue;
            for (int64_t n = 0; n < w.rows->x.ne[2]; n++) {
                const int64_t cell = written_cell(n);
                const auto at = static_cast<std::ptrdiff_t>(static_cast<size_t>(cell) * size);
                decode_row(m.whole->type, now.data() + at, row.data(), m.whole->ne[0]);
                const number * want = w.rows->x.row(0, n, 0);
                for (size_t i = 0; i < row.size(); i++) {
                    if (std::fabs(row[i] - want[i].value) <= precision(m.whole->type, want[i].value)) continue;
                    return s.fail("cell " + std::to_string(cell) + " of " + m.whole->name + " has " + std::to_string(row[i]) + " at " +
                                  std::to_string(i) + ", written was " + std::to_string(want[i].value));
                }
                std::copy_n(now.begin() + at, size, m.bytes.begin() + at);
            }
        }
        for (size_t i = 0; i < now.size(); i++) {
            const bool unused = static_cast<int64_t>(i / size) % cache_cells_ >= x.cells;
            if (now[i] == m.bytes[i] || (unused && now[i] == 0)) continue;
            return s.fail("byte " + std::to_string(i) + " of " + m.whole->name + " changed from " + std::to_string(m.bytes[i]) + " to " +
                          std::to_string(now[i]));
        }
    }

    // Normal numbers hardly exceed 5.
    static double precision(ggml_type type, double value) {
        switch (type) {
            case GGML_TYPE_F32: return 0;
            case GGML_TYPE_F16: return std::fabs(value) * 0x1p-11 + 0x1p-24;
            case GGML_TYPE_BF16: return std::fabs(value) * 0x1p-8;
            case GGML_TYPE_Q8_0: return 5.0 / 127;
            case GGML_TYPE_Q5_0:
            case GGML_TYPE_Q5_1: return 5.0 / 16;
            default: return 5.0 / 6;
        }
    }

    cell_memory keys_{}, values_{};
    int64_t cache_cells_ = 0, first_stream_ = 0;
    bool placed_ = false;
    std::function<void()> view_cells_; // makes k and v
    std::vector<written_rows> written_;
    std::vector<int64_t> written_cells_;
    std::vector<input *> free_inputs_;
    input *queries_ = nullptr, *mask_ = nullptr, *sinks_ = nullptr;
    std::vector<std::vector<bool>> dead_; // by stream of the mask
};

// --- kinds of cases; `i` counts within a kind ---------------------------------------------------------------------------------------
void run(attention & a) {
    a.s.run();
    a.check_memory();
}

// With new data for the same plan by chance.
void run_once_or_twice(attention & a) {
    a.roll();
    run(a);
    if (!a.s.problem.empty() || !a.s.chance(0.3)) return;
    a.s.describe("other data");
    a.roll();
    run(a);
}

void cached(scene & s, int64_t i) {
    attention a(s, a_shape(s, i));
    a.use_caches();
    ggml_tensor * y = a.build();
    if (s.chance(0.3)) { // read by the next node
        const node residual = s.leaf(s.add_input(y->ne[0], y->ne[1], y->ne[2], y->ne[3]));
        s.expect(s.add(ggml_add(s.graph_context(), y, residual.tensor), s.as_computed({y, nullptr}), residual));
    }
    run_once_or_twice(a);
}

void mixed_types(scene & s, int64_t i) {
    const int64_t type = i % num_cell_types, other = (type + 1 + i / num_cell_types % (num_cell_types - 1)) % num_cell_types;
    attention a(s, a_shape(s, cell_types[type], cell_types[other], s.pick(0, num_head_sizes - 1)));
    a.use_caches();
    a.build();
    run_once_or_twice(a);
}

// Every kind of mask with everything that changes logits.
void masks(scene & s, int64_t i) {
    shape x = a_shape(s, s.pick(0, num_cell_types * num_head_sizes - 1));
    constexpr auto num_masks = static_cast<int64_t>(sees::count);
    x.mask = static_cast<sees>(i % num_masks);
    i /= num_masks;
    const bool masked = x.mask != sees::everything;
    x.max_bias = masked && i % 2 == 0 ? 8 : 0;
    x.softcap = i / 2 % 2 == 0 ? 30 : 0;
    x.sinks = i / 4 % 2 == 0;
    x.mask_heads = masked && i / 8 % 2 == 0 ? x.heads() : 1;
    x.mask_streams = masked ? x.streams : 1;
    attention a(s, x);
    a.use_caches();
    a.build();
    run_once_or_twice(a);
}

void written(scene & s, int64_t i) {
    shape x = a_shape(s, i);
    x.tokens = std::min(x.tokens, x.cells);
    attention a(s, x);
    a.use_caches();
    a.write_in_graph();
    a.build();
    run_once_or_twice(a);
}

// Some steps of a conversation: one graph, more cells alive each time.
void steps(scene & s, int64_t i) {
    shape x = a_shape(s, i);
    x.tokens = std::min<int64_t>(x.cells, s.pick(1, 4));
    attention a(s, x);
    a.use_caches();
    a.write_in_graph();
    a.build();
    a.roll();
    run(a);
    for (int step = 0; step < 3 && s.problem.empty(); step++) {
        a.advance();
        run(a);
    }
}

// Values are the first part of the keys.
void values_in_keys(scene & s, int64_t i) {
    const ggml_type type = cell_types[i % num_cell_types];
    shape x = a_shape(s, type, type, s.chance(0.6) ? num_head_sizes - 1 : s.pick(0, num_head_sizes - 1));
    if (s.chance(0.7)) x.kv_heads = 1;
    x.mask_heads = 1;
    x.tokens = std::min(x.tokens, x.cells);
    attention a(s, x);
    a.use_caches(0, true);
    if (s.chance(0.4)) a.write_in_graph();
    a.build();
    run_once_or_twice(a);
}

void plain_tensors(scene & s, int64_t i) {
    attention a(s, a_shape(s, i));
    a.use_plain_tensors();
    a.build();
    run_once_or_twice(a);
}

void without_cache(scene & s, int64_t i) {
    const ggml_type type = i % 4 == 0 ? GGML_TYPE_BF16 : i % 4 == 1 ? GGML_TYPE_F32 : GGML_TYPE_F16;
    attention a(s, a_shape(s, type, type, i));
    a.use_cast();
    a.build();
    run_once_or_twice(a);
}

// The second layer's queries are what the first one gives.
void two_layers(scene & s, int64_t i) {
    shape x = a_shape(s, i);
    x.tokens = std::min(x.tokens, x.cells);
    shape y = x;
    y.d_k = y.d_v;
    attention a(s, x), b(s, y);
    a.use_caches(0);
    b.use_caches(1);
    if (s.chance(0.5)) a.write_in_graph();
    ggml_tensor * q = a.build();
    if (s.chance(0.5)) b.write_in_graph();
    b.build(q);
    for (int round = 0; round < 2 && s.problem.empty(); round++) {
        a.roll();
        b.roll();
        run(a);
        b.check_memory();
    }
}

// NaN in a cell that some rows see, and others do not.
void nan_in_sight(scene & s, int64_t i) {
    shape x = a_shape(s, i);
    attention a(s, x);
    a.use_caches();
    a.build();
    a.roll();
    if (!reads_hidden_cells(*a.op)) a.spoil_keys(s.pick(0, x.cells - 1), s.pick(0, x.kv_heads - 1), s.pick(0, x.streams - 1));
    run(a);
}

// What the host does to caches between graphs.
void moved_cells(scene & s, int64_t i) {
    shape x = a_shape(s, i);
    if (i % 2 == 0 && x.streams == 1) {
        x.streams = 2;
        x.cells = (x.cells + 1) / 2;
        if (x.mask_streams == 1 && s.chance(0.8)) x.mask_streams = x.mask == sees::everything ? 1 : 2;
    }
    attention a(s, x);
    a.use_caches();
    a.build();
    a.roll();
    run(a);
    if (!s.problem.empty()) return;
    if (i % 2 == 0) a.copy_stream(0, s.pick(1, x.streams - 1));
    else a.clear();
    run(a);
    if (!s.problem.empty() || s.chance(0.5)) return;
    a.roll();
    run(a);
}

const kind_of_case kinds[] = {
    {"cached", cached, 2 * num_cell_types * num_head_sizes},
    {"mixed types", mixed_types, num_cell_types * (num_cell_types - 1)},
    {"masks", masks, 96},
    {"written", written, 72},
    {"steps", steps, 36},
    {"values in keys", values_in_keys, 36},
    {"plain tensors", plain_tensors, 72},
    {"without cache", without_cache, 24},
    {"two layers", two_layers, 27},
    {"NaN in sight", nan_in_sight, 27},
    {"moved cells", moved_cells, 36},
};

bool check_totals(const device & d, bool whole) {
    const uint64_t reused = d.count_of(counter::plans_reused);
    std::printf("kernel steps %llu, plans reused %llu, delegated FLASH_ATTN_EXT %llu\n",
                static_cast<unsigned long long>(d.count_of(counter::kernel_steps)), static_cast<unsigned long long>(reused),
                static_cast<unsigned long long>(d.delegated(GGML_OP_FLASH_ATTN_EXT)));
    if (whole && reused == 0) {
        std::puts("FAILED: no plan was used again");
        return false;
    }
    if (d.count_of(counter::kv_bytes) == 0) return true;
    std::puts("FAILED: bytes of caches are still counted after all are gone");
    return false;
}

} // namespace
} // namespace alloy::test

int main(int argc, char ** argv) {
    using namespace alloy::test;
    return run_program({"attention_cases", kinds, nullptr, check_totals}, argc, argv);
}
#endif
