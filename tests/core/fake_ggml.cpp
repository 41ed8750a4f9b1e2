#include "fake_ggml.h"

#include "host/symbols.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

using namespace alloy::host;

extern "C" buffer * ggml_backend_buffer_init(buffer_type *, buffer_table, void *, size_t);

namespace fake {
namespace {

constexpr int quant_block = 32, quant_bytes = 18, quant_type = 2; // Q4_0
constexpr int q8_bytes = 34, q8_type = 8;                         // Q8_0

// To nearest, ties to even, as the host rounds.
uint16_t nearest_half(float x) {
    const double size = std::fabs(x);
    const int sign = std::signbit(x) ? 0x8000 : 0;
    if (std::isnan(x)) return 0x7E00;
    if (size >= 65520) return static_cast<uint16_t>(sign | 0x7C00);
    if (size < 0x1p-14) return static_cast<uint16_t>(sign | static_cast<int>(std::nearbyint(size * 0x1p24)));
    int exponent;
    const double mantissa = std::frexp(size, &exponent);
    return static_cast<uint16_t>(sign | (((exponent + 14) << 10) + static_cast<int>(std::nearbyint(mantissa * 2048)) - 1024));
}

void quantize_q8(const float * from, uint8_t * to, int64_t blocks) {
    for (int64_t b = 0; b < blocks; b++, from += quant_block, to += q8_bytes) {
        float largest = 0;
        for (int i = 0; i < quant_block; i++) largest = std::max(largest, std::fabs(from[i]));
        const float d = largest / 127;
        const uint16_t half = nearest_half(d);
        std::memcpy(to, &half, 2);
        for (int i = 0; i < quant_block; i++) to[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(d > 0 ? std::round(from[i] / d) : 0));
    }
}

// The fake numbers operations as it likes: a real host's numbers must not be built in anywhere.
constexpr int first_op = 7;
const char * const op_names[] = {
#define ALLOY_OP(name, host_name) host_name,
#include "host/ops.inc"
#undef ALLOY_OP
};

// --- repacking buffer type -------------------------------------------------------------------------------------------------------

constexpr int64_t interleave = 4;
int repack_extra; // what `extra` of a repacked tensor points at

void repack_set(buffer *, tensor * t, const void * data, size_t, size_t) {
    const auto * from = static_cast<const uint8_t *>(data);
    auto * to = static_cast<uint8_t *>(t->data);
    const int64_t blocks = t->ne[0] / quant_block;
    for (int64_t row = 0; row < t->ne[1] * t->ne[2]; row += interleave)
        for (int64_t x = 0; x < blocks; x++)
            for (int byte = 0; byte < quant_bytes; byte++)
                for (int64_t r = 0; r < interleave; r++)
                    *to++ = static_cast<uint8_t>(from[((row + r) * blocks + x) * quant_bytes + byte] ^ 0x5a);
}

int repack_init(buffer *, tensor * t) {
    t->extra = &repack_extra;
    return status_success;
}

void free_plain(buffer * b) { std::free(b->context); }
void * base_of(buffer * b) { return b->context; }
void plain_set(buffer *, tensor * t, const void * data, size_t offset, size_t bytes) {
    std::memcpy(static_cast<char *>(t->data) + offset, data, bytes);
}

buffer * alloc(buffer_type * type, size_t bytes) {
    buffer_table table{};
    table.free_buffer = free_plain;
    table.get_base = base_of;
    table.set_tensor = type == repack_type() ? repack_set : plain_set;
    table.init_tensor = type == repack_type() ? repack_init : nullptr;
    return ggml_backend_buffer_init(type, table, std::calloc(1, bytes + 64), bytes);
}

const char * type_name(buffer_type * type) { return type == repack_type() ? state().repack_name.c_str() : "FAKE"; }
size_t alignment(buffer_type *) { return 32; }
bool is_plain(buffer_type * type) { return type == plain_type(); }

buffer_type make_type() {
    buffer_type t{};
    t.iface.get_name = type_name;
    t.iface.alloc_buffer = alloc;
    t.iface.get_alignment = alignment;
    t.iface.is_host = is_plain;
    return t;
}

// --- CPU device ------------------------------------------------------------------------------------------------------------------

[[maybe_unused]] bool supports(device *, const tensor * node) {
    const tensor * w = node->src[0];
    if (w != nullptr && w->buffer != nullptr && w->buffer->buft == repack_type()) return w->type == quant_type && w->ne[1] % interleave == 0;
    return true;
}

int compute(backend *, graph * g) {
    for (int i = 0; i < g->n_nodes; i++) {
        tensor * node = g->nodes[i];
        const bool custom = op_of(node) == op::custom;
        state().ran.push_back(custom ? "CUSTOM" : node->name);
        if (!custom) continue;
        custom_params params;
        std::memcpy(&params, node->op_params, sizeof(params));
        for (int t = 0; t < state().threads; t++) params.run(node, t, state().threads, params.user);
    }
    return state().status;
}

const char * cpu_reg_name(registry *) { return "CPU"; }
buffer_type ** extra_bufts(device *) {
    static buffer_type * list[2] = {};
    list[0] = state().repacks ? repack_type() : nullptr;
    return list;
}
void * proc(registry *, const char * name) {
    return std::strcmp(name, "ggml_backend_dev_get_extra_bufts") == 0 ? reinterpret_cast<void *>(extra_bufts) : nullptr;
}
registry cpu_registry{3, {cpu_reg_name, nullptr, nullptr, proc}, nullptr};
[[maybe_unused]] device cpu{};
backend cpu_backend_object{};

} // namespace

host_state & state() {
    static host_state s;
    return s;
}
void reset() { state() = {}; }

buffer_type * repack_type() {
    static buffer_type t = make_type();
    return &t;
}
buffer_type * plain_type() {
    static buffer_type t = make_type();
    return &t;
}

size_t type_bytes(int type) { return type == type_i64 ? 8 : type == type_f16 ? 2 : 4; }

void connect() {
    std::string missing;
    if (!resolve_symbols(reinterpret_cast<void *>(&connect), missing) || !resolve_ops(missing)) {
        std::fprintf(stderr, "fake host lacks %s\n", missing.c_str());
        std::abort();
    }
}

// --- graphs ----------------------------------------------------------------------------------------------------------------------

tensor * graph_builder::make(const char * name, int type, const std::vector<int64_t> & ne, void * data) {
    tensor & t = tensors_.emplace_back();
    t.type = type;
    size_t elements = 1;
    for (int i = 0; i < max_dims; i++) {
        t.ne[i] = i < static_cast<int>(ne.size()) ? ne[i] : 1;
        t.nb[i] = i == 0 ? type_bytes(type) : t.nb[i - 1] * static_cast<size_t>(t.ne[i - 1]);
        elements *= static_cast<size_t>(t.ne[i]);
    }
    std::snprintf(t.name, sizeof(t.name), "%s", name);
    t.op = op_number(op::none);
    t.flags = flag_compute;
    if (data == nullptr) data = memory_.emplace_back(elements * type_bytes(type) / sizeof(float) + 1).data();
    t.data = data;
    return &t;
}

tensor * graph_builder::leaf(const char * name, int type, std::vector<int64_t> ne, void * data) { return make(name, type, ne, data); }

tensor * graph_builder::node(op which, const char * name, std::vector<int64_t> ne, std::vector<tensor *> sources) {
    tensor * t = make(name, type_f32, ne, nullptr);
    t->op = op_number(which);
    for (size_t i = 0; i < sources.size(); i++) t->src[i] = sources[i];
    nodes_.push_back(t);
    return t;
}

tensor * graph_builder::view(tensor * of, const char * name, std::vector<int64_t> ne) {
    tensor * t = make(name, of->type, ne, of->data);
    t->op = op_number(op::reshape);
    t->view_src = of;
    t->src[0] = of;
    nodes_.push_back(t);
    return t;
}

void graph_builder::set_param(tensor * t, int slot, float value) { std::memcpy(&t->op_params[slot], &value, sizeof(value)); }

graph & graph_builder::graph(uint64_t uid) {
    const size_t slots = 1021;
    keys_.assign(slots, nullptr);
    used_.assign(slots / 32 + 1, 0);
    use_counts_.assign(slots, 0);
    auto slot_of = [&](const tensor * t) {
        size_t i = (reinterpret_cast<uintptr_t>(t) >> 4) % slots;
        while (keys_[i] != nullptr && keys_[i] != t) i = (i + 1) % slots;
        keys_[i] = const_cast<tensor *>(t);
        used_[i >> 5] |= 1u << (i & 31);
        return i;
    };
    for (tensor * node : nodes_) {
        slot_of(node);
        for (tensor * source : node->src)
            if (source != nullptr) use_counts_[slot_of(source)]++;
    }
    graph_ = {};
    graph_.size = graph_.n_nodes = static_cast<int>(nodes_.size());
    graph_.nodes = nodes_.data();
    graph_.use_counts = use_counts_.data();
    graph_.visited = {slots, used_.data(), keys_.data()};
    graph_.uid = uid;
    return graph_;
}

} // namespace fake

// --- the exported functions --------------------------------------------------------------------------------------------------------

using fake::state;
#define EXPORT extern "C" [[gnu::visibility("default")]]

EXPORT const char * ggml_version() { return state().version.c_str(); }
EXPORT const char * ggml_op_name(int number) {
    const int i = number - fake::first_op;
    if (i < 0 || i >= static_cast<int>(sizeof(fake::op_names) / sizeof(fake::op_names[0]))) return "OTHER";
    return state().renamed_op == fake::op_names[i] ? "RENAMED" : fake::op_names[i];
}
EXPORT const char * ggml_type_name(int) { return "f32"; }
EXPORT size_t ggml_tensor_overhead() { return state().tensor_overhead; }
EXPORT bool ggml_is_quantized(int type) { return type == fake::quant_type || type == fake::q8_type; }
EXPORT int64_t ggml_blck_size(int type) { return ggml_is_quantized(type) ? fake::quant_block : 1; }
EXPORT size_t ggml_row_size(int type, int64_t ne) {
    if (!ggml_is_quantized(type)) return static_cast<size_t>(ne) * fake::type_bytes(type);
    return static_cast<size_t>(ne / fake::quant_block) * static_cast<size_t>(type == fake::quant_type ? fake::quant_bytes : fake::q8_bytes);
}
EXPORT size_t ggml_quantize_chunk(int type, const float * from, void * to, int64_t, int64_t rows, int64_t k, const float *) {
    const size_t bytes = ggml_row_size(type, rows * k);
    if (type == type_f32) std::memcpy(to, from, bytes);
    for (int64_t i = 0; type == type_f16 && i < rows * k; i++) static_cast<uint16_t *>(to)[i] = fake::nearest_half(from[i]);
    if (type == fake::q8_type) fake::quantize_q8(from, static_cast<uint8_t *>(to), rows * k / fake::quant_block);
    return bytes;
}
EXPORT size_t ggml_nbytes(const tensor * t) {
    for (int64_t n : t->ne)
        if (n <= 0) return 0;
    size_t bytes = ggml_row_size(t->type, t->ne[0]);
    for (int i = 1; i < max_dims; i++) bytes += static_cast<size_t>(t->ne[i] - 1) * t->nb[i];
    return bytes;
}
EXPORT void ggml_log_internal(int, const char * format, ...) {
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    state().log.emplace_back(line);
}
EXPORT buffer * ggml_backend_buffer_init(buffer_type * type, buffer_table table, void * context, size_t bytes) {
    return new buffer{table, type, context, bytes, usage_any};
}
EXPORT void ggml_backend_buffer_free(buffer * b) {
    if (b != nullptr && b->iface.free_buffer != nullptr) b->iface.free_buffer(b);
    delete b;
}
EXPORT void * ggml_backend_buffer_get_base(buffer * b) { return b->iface.get_base(b); }
EXPORT int ggml_backend_tensor_alloc(buffer * b, tensor * t, void * address) {
    t->buffer = b;
    t->data = address;
    return b->iface.init_tensor ? b->iface.init_tensor(b, t) : status_success;
}
EXPORT int ggml_backend_view_init(tensor * t) {
    t->buffer = t->view_src->buffer;
    t->data = static_cast<char *>(t->view_src->data) + t->view_offs;
    return status_success;
}
EXPORT void ggml_backend_tensor_set(tensor * t, const void * data, size_t offset, size_t bytes) {
    t->buffer->iface.set_tensor(t->buffer, t, data, offset, bytes);
}
EXPORT buffer * ggml_backend_buft_alloc_buffer(buffer_type * type, size_t bytes) {
    return bytes == 0 ? ggml_backend_buffer_init(type, {}, nullptr, 0) : type->iface.alloc_buffer(type, bytes);
}
EXPORT size_t ggml_backend_buft_get_alloc_size(buffer_type *, const tensor * t) { return ggml_nbytes(t); }
EXPORT size_t ggml_backend_buft_get_alignment(buffer_type * type) { return type->iface.get_alignment(type); }
EXPORT const char * ggml_backend_buft_name(buffer_type * type) { return type->iface.get_name(type); }
EXPORT bool ggml_backend_buft_is_host(buffer_type * type) { return type->iface.is_host && type->iface.is_host(type); }
EXPORT backend * ggml_backend_dev_init(device *, const char *) {
    fake::cpu_backend_object.iface.graph_compute = fake::compute;
    return &fake::cpu_backend_object;
}
EXPORT bool ggml_backend_dev_supports_op(device * d, const tensor * node) { return d->iface.supports_op(d, node); }
EXPORT registry * ggml_backend_dev_backend_reg(device *) {
    fake::cpu_registry.api_version = state().api_version;
    return &fake::cpu_registry;
}
EXPORT void * ggml_backend_reg_get_proc_address(registry * r, const char * name) { return r->iface.get_proc_address(r, name); }
EXPORT int ggml_backend_graph_compute(backend * b, graph * g) { return b->iface.graph_compute(b, g); }
EXPORT void ggml_backend_free(backend *) {}
#ifndef FAKE_WITHOUT_DEV_BY_TYPE // one fake host lacks a symbol
EXPORT device * ggml_backend_dev_by_type(int) {
    fake::cpu.iface.supports_op = fake::supports;
    return state().has_cpu ? &fake::cpu : nullptr;
}
#endif
