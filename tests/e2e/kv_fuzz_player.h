// Runs operations of kv_fuzz on two contexts and compares what comes of it. Included by kv_fuzz.cpp only.
#pragma once
#include "kv_fuzz_ops.h"

#include <ggml-alloy.h>
#include <ggml-backend.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

namespace alloy::test {
namespace {

using bytes = std::vector<uint8_t>;

// --- what is counted over all groups ------------------------------------------------------------------------------------------------
struct totals {
    std::array<int64_t, static_cast<size_t>(act::count)> ops{};
    std::map<int, int64_t> statuses; // of llama_decode
    std::map<std::string, double> worst; // by cache: |difference| / largest |logit|, or 1 - cosine
    int64_t sequences = 0, rows = 0, tokens = 0, states = 0;
};

const ggml_alloy_api * plugin_api() {
    ggml_backend_reg_t registry = ggml_backend_reg_by_name("ALLOY");
    if (registry == nullptr) return nullptr;
    auto get = reinterpret_cast<ggml_alloy_get_api_t>(ggml_backend_reg_get_proc_address(registry, "ggml_alloy_get_api"));
    return get != nullptr ? get(GGML_ALLOY_API_VERSION) : nullptr;
}

// -1: the plugin has no such counter.
int64_t counter_of(const char * name) {
    static const ggml_alloy_api * api = plugin_api();
    for (size_t i = 0; i < api->counter_count(); i++) {
        if (std::strcmp(api->counter_name(i), name) == 0) return static_cast<int64_t>(api->counter_value(i));
    }
    return -1;
}

// --- one group on its two contexts --------------------------------------------------------------------------------------------------
struct token_batch {
    std::vector<llama_token> tokens;
    std::vector<llama_pos> positions;
    std::vector<std::vector<llama_seq_id>> owners;
    std::vector<int8_t> outputs;

    void add(llama_token token, llama_pos position, std::vector<llama_seq_id> owner, bool output) {
        tokens.push_back(token);
        positions.push_back(position);
        owners.push_back(std::move(owner));
        outputs.push_back(output);
    }
    int decode(llama_context * context) {
        std::vector<int32_t> counts;
        std::vector<llama_seq_id *> pointers;
        for (auto & owner : owners) {
            counts.push_back(static_cast<int32_t>(owner.size()));
            pointers.push_back(owner.data());
        }
        return llama_decode(context, {static_cast<int32_t>(tokens.size()), tokens.data(), nullptr, positions.data(), counts.data(),
                                      pointers.data(), outputs.data()});
    }
};

class player {
  public:
    player(const settings & s, const group & g, llama_model * stock, llama_model * ours, totals & t)
        : s_(s), g_(g), stock_(llama_init_from_model(stock, g.context)), ours_(llama_init_from_model(ours, g.context)), totals_(t),
          vocabulary_(llama_vocab_n_tokens(llama_model_get_vocab(ours))), ids_(static_cast<int>(g.context.n_seq_max)) {
        if ((stock_ == nullptr) != (ours_ == nullptr)) {
            fail(stock_ == nullptr ? "stock refuses this context" : "a context that stock makes is refused");
        }
        is_aborted = false;
        plain_caches_ = counter_of("kv_plain_caches");
    }
    ~player() {
        llama_free(stock_);
        llama_free(ours_);
    }
    player(const player &) = delete;
    player & operator=(const player &) = delete;

    // False at the first difference.
    bool play(const op & o, size_t index) {
        if (stock_ == nullptr || ours_ == nullptr) return problem.empty();
        history.push_back(text("%4zu %-11s", index, acts[static_cast<size_t>(o.what)].name));
        std::snprintf(running_now, sizeof(running_now), "%s, operation %zu (%s) of sequence %d, --seed %llu", g_.describe().c_str(), index,
                      acts[static_cast<size_t>(o.what)].name, o.sequence, static_cast<unsigned long long>(g_.seed));
        totals_.ops[static_cast<size_t>(o.what)]++;
        forget_recent_log();
        dice d(o.seed);
        switch (o.what) {
            case act::start: start(d); break;
            case act::decode: decode_one(o, d); break;
            case act::batch: decode_several(o, d); break;
            case act::coupled: decode_coupled(o, d); break;
            case act::wrong: decode_wrong(o, d); break;
            case act::abort: abort(o, d); break;
            case act::remove: remove(o, d); break;
            case act::copy: copy(o, d); break;
            case act::keep: keep(o); break;
            case act::shift: shift(o, d); break;
            case act::save: save(o, id(o.a)); break;
            case act::restore: restore(o, d); break;
            case act::save_all: save(o, whole); break;
            case act::restore_all: restore_all(o, d); break;
            case act::checkpoint: checkpoint(o, d); break;
            case act::clear: clear(d.chance(0.6)); break;
            case act::count: break;
        }
        check_positions();
        if (plugin_errors > 0) fail("the plugin logged an error");
        return problem.empty();
    }

    std::string problem;
    std::vector<std::string> history;

  private:
    static constexpr int whole = -1;
    struct saved {
        int from;
        bytes stock, ours;
    };

    int id(int any) const { return any % ids_; }
    void fail(const std::string & why) {
        if (problem.empty()) problem = why;
    }
    void note(const std::string & what) { history.back() += " " + what; }

    // The same call on both; what stock returns.
    template <class Call> auto both(const char * what, Call call) {
        const auto expected = call(stock_), got = call(ours_);
        if (expected != got) {
            fail(text("%s: stock returns %lld, ours %lld", what, static_cast<long long>(expected), static_cast<long long>(got)));
        }
        return expected;
    }
    template <class Call> void on_both(Call call) {
        call(llama_get_memory(stock_));
        call(llama_get_memory(ours_));
    }
    llama_pos end_of(int sequence) const { return llama_memory_seq_pos_max(llama_get_memory(stock_), sequence) + 1; }
    void check_positions() {
        for (int i = 0; i < ids_; i++) {
            both("first position", [&](llama_context * c) { return llama_memory_seq_pos_min(llama_get_memory(c), i); });
            both("last position", [&](llama_context * c) { return llama_memory_seq_pos_max(llama_get_memory(c), i); });
        }
    }

    // --- decoding
    llama_token a_token(dice & d) const { return d.pick(0, vocabulary_ - 1); }

    void extend(token_batch & batch, int sequence, int n, bool all, dice & d) {
        const llama_pos first = end_of(sequence);
        for (int i = 0; i < n; i++) batch.add(a_token(d), first + i, {sequence}, all || i == n - 1);
    }

    int decode(token_batch & batch) {
        const int status = both("decode", [&](llama_context * c) { return batch.decode(c); });
        note(text("(%zu tokens -> %d)", batch.tokens.size(), status));
        totals_.statuses[status]++;
        if (status >= 0) copies_pending_ = shift_pending_ = false;
        if (status != 0 || !problem.empty()) return status;
        totals_.tokens += static_cast<int64_t>(batch.tokens.size());
        for (size_t i = 0; i < batch.tokens.size() && problem.empty(); i++) {
            if (batch.outputs[i]) compare(static_cast<int>(i));
        }
        return status;
    }

    void decode_one(const op & o, dice & d) {
        token_batch batch;
        note(text("seq %d from %d", id(o.a), end_of(id(o.a))));
        extend(batch, id(o.a), o.n, d.chance(0.4), d);
        if (decode(batch) == 1) make_room(o, d);
    }

    // Some sequences, a part of each after the other or token by token in turn.
    void decode_several(const op & o, dice & d) {
        const bool all = d.chance(0.4);
        std::vector<token_batch> parts(static_cast<size_t>(ids_));
        for (int i = 0; i < ids_; i++) {
            if (i != id(o.a) && d.chance(0.3)) continue;
            const int n = d.chance(0.6) ? 1 : std::max(1, o.n / ids_);
            note(text("seq %d from %d: %d", i, end_of(i), n));
            extend(parts[static_cast<size_t>(i)], i, n, all, d);
        }
        token_batch batch;
        const size_t at_once = d.chance(0.5) ? 1 : 512;
        for (size_t from = 0; from < 512; from += at_once) {
            for (token_batch & p : parts) {
                for (size_t i = from; i < std::min(from + at_once, p.tokens.size()); i++) {
                    batch.add(p.tokens[i], p.positions[i], p.owners[i], p.outputs[i]);
                }
            }
        }
        if (decode(batch) == 1) make_room(o, d);
    }

    // Tokens of two sequences at once; the host refuses some of these.
    void decode_coupled(const op & o, dice & d) {
        token_batch batch;
        const int a = id(o.a), b = id(o.b);
        const llama_pos first = end_of(a);
        for (int i = 0; i < o.n; i++) batch.add(a_token(d), first + i, a == b ? std::vector{a} : std::vector{a, b}, i == o.n - 1);
        note(text("seq %d and %d from %d", a, b, first));
        decode(batch);
    }

    void decode_wrong(const op & o, dice & d) {
        token_batch batch;
        extend(batch, id(o.a), o.n, false, d);
        const int how = d.pick(0, 3);
        if (how == 0) batch.tokens[0] = vocabulary_;
        if (how == 1) batch.owners[0] = {ids_ + 300};
        if (how == 2) batch.positions[0] = batch.positions[0] + 3;
        if (how == 3) batch = {};
        note(text("of kind %d", how));
        decode(batch);
    }

    void abort(const op & o, dice & d) {
        settle(o, d);
        token_batch batch;
        extend(batch, id(o.a), o.n, false, d);
        is_aborted = true;
        decode(batch);
        is_aborted = false;
    }

    // As a server does when the context is full.
    void make_room(const op & o, dice & d) {
        if (d.chance(0.3)) return;
        int longest = 0;
        for (int i = 1; i < ids_; i++) {
            if (end_of(i) > end_of(longest)) longest = i;
        }
        const int victim = g_.streams() ? id(o.a) : longest;
        const llama_pos from = d.chance(0.5) ? 0 : end_of(victim) / 2;
        note(text("make room: remove seq %d [%d,)", victim, from));
        both("seq_rm", [&](llama_context * c) { return llama_memory_seq_rm(llama_get_memory(c), victim, from, -1); });
    }

    // Copies and shifts are only noted by the host until it decodes; what is read in between is half of each.
    void settle(const op & o, dice & d) {
        if (!copies_pending_ && !shift_pending_) return;
        token_batch batch;
        extend(batch, id(o.a), 1, true, d);
        decode(batch);
    }
    void settle_copies(const op & o, dice & d) {
        if (copies_pending_) settle(o, d);
    }

    // --- logits
    // How much more than with f16 the two may differ because the host rounds Q to the type that goes with K (f32 caches it casts to f16).
    // Over 1500 sequences stock and exact attention came to 0.0011, 0.0021 and 0.0079 with f16, bf16 and q8_0; one cell that goes
    // missing deviates by more than 0.002 in nine rows of ten.
    double roughness() const {
        if (g_.context.type_k == GGML_TYPE_BF16 || g_.context.type_v == GGML_TYPE_BF16) return 2.5;
        if (ggml_is_quantized(g_.context.type_k) || ggml_is_quantized(g_.context.type_v)) return 8;
        return 1;
    }
    double limit() const { return s_.lossy ? s_.tolerance : s_.bit_equal() ? 0 : s_.tolerance * roughness(); }

    void compare(int row) {
        const float *want = llama_get_logits_ith(stock_, row), *got = llama_get_logits_ith(ours_, row);
        if (want == nullptr || got == nullptr) return fail(text("no logits of row %d", row));
        totals_.rows++;
        double largest = 0, difference = 0, dot = 0, size_want = 0, size_got = 0;
        bool finite = true;
        int top_want = 0, top_got = 0;
        for (int i = 0; i < vocabulary_; i++) {
            const double w = want[i], x = got[i];
            finite = finite && std::isfinite(w) && std::isfinite(x);
            largest = std::max(largest, std::fabs(w));
            difference = std::max(difference, std::fabs(w - x));
            dot += w * x;
            size_want += w * w;
            size_got += x * x;
            if (want[i] > want[top_want]) top_want = i;
            if (got[i] > got[top_got]) top_got = i;
        }
        if (!finite) return fail(text("logits of row %d are not finite", row));
        const double deviation = s_.lossy ? 1 - dot / std::sqrt(size_want * size_got) : difference / largest;
        double & worst = totals_.worst[text("K %s, V %s%s", ggml_type_name(g_.context.type_k), ggml_type_name(g_.context.type_v),
                                            g_.context.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_ENABLED ? "" : ", no flash attention")];
        worst = std::max(worst, deviation);
        if (!(deviation <= limit())) fail(text("logits of row %d deviate by %.3g, allowed is %.3g", row, deviation, limit()));
        // Two tops may swap only where they are as near to each other as the deviation.
        const bool other_top = want[top_want] - want[top_got] > 2 * limit() * largest;
        if (!s_.lossy && other_top) fail(text("row %d has another top", row));
    }

    // --- the memory's own operations
    void remove(const op & o, dice & d) {
        const int sequence = d.chance(0.07) ? -1 : id(o.a);
        const llama_pos end = end_of(id(o.a));
        llama_pos first = static_cast<llama_pos>(o.x * end), last = first + static_cast<llama_pos>(o.y * (end - first)) + 1;
        const int how = d.pick(0, 9);
        if (how < 2) first = last = -1;                                             // all of it
        else if (how < 6) last = -1;                                                // a tail
        else if (how < 7) first = -1;                                               // a beginning
        else if (how < 8) first = std::max(0, end - d.pick(1, 4)), last = -1;       // rejected drafts
        note(text("seq %d [%d,%d)", sequence, first, last));
        both("seq_rm", [&](llama_context * c) { return llama_memory_seq_rm(llama_get_memory(c), sequence, first, last); });
    }

    void copy(const op & o, dice & d) {
        const int from = id(o.a), to = id(o.b);
        llama_pos first = -1, last = -1;
        if (g_.streams()) {
            copies_pending_ = copies_pending_ || from != to;
        } else {
            if (from != to && d.chance(0.8)) on_both([&](llama_memory_t m) { llama_memory_seq_rm(m, to, -1, -1); });
            if (d.chance(0.4)) first = 0, last = static_cast<llama_pos>(o.x * end_of(from)); // a common prompt
            else if (d.chance(0.2)) first = static_cast<llama_pos>(o.x * end_of(from));
        }
        note(text("seq %d to %d [%d,%d)", from, to, first, last));
        on_both([&](llama_memory_t m) { llama_memory_seq_cp(m, from, to, first, last); });
    }

    void keep(const op & o) {
        note(text("seq %d", id(o.a)));
        on_both([&](llama_memory_t m) { llama_memory_seq_keep(m, id(o.a)); });
    }

    // Mostly a context shift; sometimes positions move up, or below zero where cells go. The host cannot shift bf16: it aborts.
    void shift(const op & o, dice & d) {
        if (g_.context.type_k == GGML_TYPE_BF16) return;
        if (!both("can_shift", [](llama_context * c) { return llama_memory_can_shift(llama_get_memory(c)); })) return;
        const int sequence = id(o.a);
        const llama_pos end = end_of(sequence), first = static_cast<llama_pos>(o.x * end / 2);
        llama_pos from = first, by = d.pick(1, 40);
        if (d.chance(0.75)) {
            by = -static_cast<llama_pos>(o.y * (end - first));
            from = first - by;
            both("seq_rm", [&](llama_context * c) { return llama_memory_seq_rm(llama_get_memory(c), sequence, first, from); });
        } else if (d.chance(0.3)) {
            from = 0;
            by = -by;
        } else if (end > 4000) {
            return;
        }
        note(text("seq %d [%d,) by %d", sequence, from, by));
        on_both([&](llama_memory_t m) { llama_memory_seq_add(m, sequence, from, -1, by); });
        shift_pending_ = true;
        if (d.chance(0.8)) decode_one(o, d);
    }

    void start(dice & d) {
        totals_.sequences++;
        if (d.chance(0.6)) clear(d.chance(0.5));
    }

    void clear(bool data) {
        note(data ? "with data" : "cells only");
        on_both([&](llama_memory_t m) { llama_memory_clear(m, data); });
        const int64_t live = counter_of("kv_live_bytes");
        const bool paged = g_.context.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_ENABLED && counter_of("kv_plain_caches") == plain_caches_;
        if (data && paged && live > 0) {
            fail(text("%lld bytes live in a cleared cache", static_cast<long long>(live)));
        }
    }

    // --- states
    bytes state_of(llama_context * c, int sequence) {
        bytes state(sequence == whole ? llama_state_get_size(c) : llama_state_seq_get_size(c, sequence));
        const size_t size = sequence == whole ? llama_state_get_data(c, state.data(), state.size())
                                              : llama_state_seq_get_data(c, state.data(), state.size(), sequence);
        if (size != state.size()) fail(text("a state of %zu bytes was announced, %zu were written", state.size(), size));
        totals_.states++;
        return state;
    }
    size_t set_state(llama_context * c, int sequence, const bytes & state, size_t size) {
        return sequence == whole ? llama_state_set_data(c, state.data(), size) : llama_state_seq_set_data(c, state.data(), size, sequence);
    }
    void compare_states(const bytes & stock, const bytes & ours, bool must_be_equal) {
        if (stock.size() != ours.size()) return fail(text("stock saves %zu bytes, ours %zu", stock.size(), ours.size()));
        if (!must_be_equal || stock == ours) return;
        const auto [at, _] = std::mismatch(stock.begin(), stock.end(), ours.begin());
        fail(text("states of %zu bytes differ at byte %td", stock.size(), at - stock.begin()));
    }

    void save(const op & o, int sequence) {
        dice d(o.seed);
        settle_copies(o, d);
        const saved state{sequence, state_of(stock_, sequence), state_of(ours_, sequence)};
        note(text("%s, %zu bytes", sequence == whole ? "all" : text("seq %d", sequence).c_str(), state.stock.size()));
        compare_states(state.stock, state.ours, s_.bit_equal());
        std::vector<saved> & shelf = sequence == whole ? saved_wholes_ : saved_sequences_;
        if (shelf.size() < 4) shelf.push_back(state);
        else shelf[static_cast<size_t>(o.b) % 4] = state;
    }

    // Each its own bytes, or both those of one: then no arithmetic lies between the two that are compared.
    void restore(const op & o, dice & d) {
        if (saved_sequences_.empty()) return;
        settle_copies(o, d);
        const saved & state = saved_sequences_[static_cast<size_t>(o.b) % saved_sequences_.size()];
        const int to = d.chance(0.5) ? id(o.a) : state.from;
        const int of = d.pick(0, 3);
        const size_t size = d.chance(0.05) ? static_cast<size_t>(o.x * static_cast<double>(state.stock.size())) : state.stock.size();
        note(text("seq %d from %s bytes of seq %d, %zu of %zu", to, of == 0 ? "stock's" : of == 1 ? "our" : "their own", state.from, size,
                  state.stock.size()));
        const size_t read = both("state_seq_set_data", [&](llama_context * c) {
            const bool stocks = of == 0 || (of > 1 && c == stock_);
            return set_state(c, to, stocks ? state.stock : state.ours, size);
        });
        note(text("-> %zu", read));
        if (read > 0 && of < 2 && problem.empty()) {
            // A state that has no cells for one of the caches (none at all, or a cut one was restored before) leaves what the sequence has there.
            const bytes stock = state_of(stock_, to);
            compare_states(stock, state_of(ours_, to), !s_.lossy && stock.size() == state.stock.size());
        }
        if (d.chance(0.6)) decode_one({.a = to, .n = o.n}, d);
    }

    void restore_all(const op & o, dice & d) {
        if (saved_wholes_.empty()) return;
        settle_copies(o, d);
        const saved & state = saved_wholes_[static_cast<size_t>(o.b) % saved_wholes_.size()];
        const int of = d.pick(0, 3);
        const size_t size = d.chance(0.05) ? static_cast<size_t>(o.x * static_cast<double>(state.stock.size())) : state.stock.size();
        const size_t read = both("state_set_data", [&](llama_context * c) {
            const bool stocks = of == 0 || (of > 1 && c == stock_);
            return set_state(c, whole, stocks ? state.stock : state.ours, size);
        });
        note(text("%zu of %zu bytes -> %zu", size, state.stock.size(), read));
        if (size < state.stock.size()) return clear(true); // the host's cells are in disorder then
        shift_pending_ = false;
        if (of < 2 && problem.empty()) compare_states(state_of(stock_, whole), state_of(ours_, whole), !s_.lossy);
    }

    // A state that stays on the device, as speculative decoding saves it. The host cannot do this for blocks of 32, and of transposed values it
    // aborts: it puts as many bytes in more pieces into a buffer that was padded for fewer (ggml_tallocr_alloc: not enough space).
    void checkpoint(const op & o, dice & d) {
        if (ggml_is_quantized(g_.context.type_k) || ggml_is_quantized(g_.context.type_v)) return;
        if (g_.context.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_DISABLED) return;
        settle(o, d);
        const int sequence = id(o.a);
        constexpr llama_state_seq_flags on_device = LLAMA_STATE_SEQ_FLAGS_ON_DEVICE;
        const size_t size = both("state_seq_get_size_ext",
                                 [&](llama_context * c) { return llama_state_seq_get_size_ext(c, sequence, on_device); });
        bytes stock(size), ours(size);
        both("state_seq_get_data_ext", [&](llama_context * c) {
            return llama_state_seq_get_data_ext(c, (c == stock_ ? stock : ours).data(), size, sequence, on_device);
        });
        decode_one({.a = sequence, .n = std::min(o.n, 16)}, d);
        const size_t read = both("state_seq_set_data_ext", [&](llama_context * c) {
            return llama_state_seq_set_data_ext(c, (c == stock_ ? stock : ours).data(), size, sequence, on_device);
        });
        note(text("seq %d, %zu bytes -> %zu", sequence, size, read));
        if (problem.empty()) compare_states(state_of(stock_, sequence), state_of(ours_, sequence), s_.bit_equal());
    }

    const settings & s_;
    const group & g_;
    llama_context *stock_, *ours_;
    totals & totals_;
    int vocabulary_, ids_;
    bool copies_pending_ = false, shift_pending_ = false;
    int64_t plain_caches_;
    std::vector<saved> saved_sequences_, saved_wholes_;
};

} // namespace
} // namespace alloy::test
