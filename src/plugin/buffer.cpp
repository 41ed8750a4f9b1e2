// The buffer type and its buffers: thin tables over graph::memory. Nothing thrown below passes here.
#include "plugin/plugin.h"

#include "base/log.h"
#include "graph/memory.h"
#include "host/symbols.h"

#include <exception>

namespace alloy::plugin {
namespace {

using graph::memory;
using host::buffer;
using host::buffer_type;
using host::tensor;

memory & contents(buffer * b) { return *static_cast<memory *>(b->context); }

// Runs `body`, turns anything thrown (only lack of memory can be) into a log line and `otherwise`.
template <class Body, class Result> Result guarded(Body body, Result otherwise) noexcept {
    try {
        return body();
    } catch (const std::exception & e) {
        ALLOY_ERROR("%s", e.what());
        return otherwise;
    } catch (...) {
        return otherwise;
    }
}
template <class Body> void guarded(Body body) noexcept {
    guarded([&] { body(); return 0; }, 0);
}

void free_buffer(buffer * b) {
    guarded([&] { delete &contents(b); });
}
void * get_base(buffer * b) { return contents(b).base(); }
void memset_tensor(buffer * b, tensor * t, uint8_t value, size_t offset, size_t bytes) {
    guarded([&] { contents(b).fill(t, value, offset, bytes); });
}
void set_tensor(buffer * b, tensor * t, const void * data, size_t offset, size_t bytes) {
    guarded([&] { contents(b).write(t, data, offset, bytes); });
}
void get_tensor(buffer * b, const tensor * t, void * data, size_t offset, size_t bytes) {
    guarded([&] { contents(b).read(t, data, offset, bytes); });
}
bool cpy_tensor(buffer * b, const tensor * from, tensor * to) {
    return guarded(
        [&] {
            memory * source = graph::memory_of(from);
            return source != nullptr && contents(b).copy(from, *source, to);
        },
        false);
}
void clear(buffer * b, uint8_t value) {
    guarded([&] { contents(b).clear(value); });
}

constexpr host::buffer_table buffer_functions = {
    .free_buffer = free_buffer,
    .get_base = get_base,
    .init_tensor = nullptr,
    .memset_tensor = memset_tensor,
    .set_tensor = set_tensor,
    .get_tensor = get_tensor,
    .set_tensor_2d = nullptr,
    .get_tensor_2d = nullptr,
    .cpy_tensor = cpy_tensor,
    .clear = clear,
    .reset = nullptr,
};

buffer * wrap(std::unique_ptr<memory> m) {
    if (m == nullptr) return nullptr;
    buffer * b = host::api().ggml_backend_buffer_init(the_buffer_type(), buffer_functions, m.get(), m->bytes());
    if (b != nullptr) m.release(); // free_buffer has it now
    return b;
}

const char * get_name(buffer_type *) { return device_name; }

buffer * alloc_buffer(buffer_type *, size_t bytes) {
    return guarded([&] { return wrap(memory::plain(bytes)); }, static_cast<buffer *>(nullptr));
}

buffer * alloc_buffer_n(buffer_type *, tensor ** tensors, int n) {
    return guarded(
        [&]() -> buffer * {
            if (memory::bytes_for(tensors, n) == 0) return nullptr; // as the host's default: nothing to allocate
            buffer * b = wrap(memory::for_tensors(tensors, n));
            if (b != nullptr && !contents(b).place(b, tensors, n)) {
                host::api().ggml_backend_buffer_free(b);
                return nullptr;
            }
            return b;
        },
        static_cast<buffer *>(nullptr));
}

size_t get_alignment(buffer_type *) { return graph::tensor_alignment; }
size_t get_alloc_size(buffer_type *, const tensor * t) { return weights::weight_set::bytes_for(t); }
size_t get_alloc_size_n(buffer_type *, tensor ** tensors, int n) { return memory::expected_bytes(tensors, n); }
bool is_host(buffer_type *) { return false; }

} // namespace

buffer_type * the_buffer_type() {
    static buffer_type type = [] {
        graph::set_own_buffer_type(&type);
        return buffer_type{
            .iface = {.get_name = get_name,
                      .alloc_buffer = alloc_buffer,
                      .alloc_buffer_n = alloc_buffer_n,
                      .get_alignment = get_alignment,
                      .get_max_size = nullptr,
                      .get_alloc_size = get_alloc_size,
                      .get_alloc_size_n = get_alloc_size_n,
                      .is_host = is_host},
            .device = the_device(),
            .context = nullptr,
        };
    }();
    return &type;
}

} // namespace alloy::plugin
