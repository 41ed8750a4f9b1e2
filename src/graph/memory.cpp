#include "graph/memory.h"

#include "base/counters.h"
#include "base/log.h"
#include "base/options.h"
#include "base/os.h"
#include "host/symbols.h"

#include <algorithm>
#include <cstring>

namespace alloy::graph {
namespace {

const host::buffer_type * own_buffer_type = nullptr;

// Bytes of a tensor's place. Cells give memory back page by page, so that a cache shares no page with another.
size_t place_of(const host::tensor * t) {
    kv::cache_name name;
    const size_t alignment = kv::parse_cache_name(t->name, name) ? os::page_bytes() : tensor_alignment;
    return (weights::weight_set::bytes_for(t) + alignment - 1) / alignment * alignment;
}

bool is_ours_to_place(const host::tensor * t) { return t->data == nullptr && t->view_src == nullptr; }

bool is_weight(const host::tensor * t) {
    const char * dot = std::strrchr(t->name, '.');
    return weights::was_offered(t) || (dot != nullptr && (std::strcmp(dot, ".weight") == 0 || std::strcmp(dot, ".bias") == 0));
}

purpose purpose_of(host::tensor ** tensors, int n) {
    kv::cache_name name;
    for (int i = 0; i < n; i++) {
        if (!is_ours_to_place(tensors[i])) continue;
        if (kv::parse_cache_name(tensors[i]->name, name)) return purpose::kv;
        if (kv::is_state_name(tensors[i]->name)) return purpose::state;
        if (is_weight(tensors[i])) return purpose::weights;
    }
    return purpose::other;
}

counter counter_of(purpose p) {
    switch (p) {
        case purpose::kv: return counter::kv_bytes;
        case purpose::state: return counter::state_bytes;
        case purpose::compute: return counter::compute_bytes;
        default: return counter::other_bytes; // weights count themselves
    }
}

bool weights_fit(size_t bytes) {
    const size_t limit = number_of(option::memory) != 0 ? static_cast<size_t>(number_of(option::memory)) << 20 : os::available_memory();
    if (bytes <= limit) return true;
    ALLOY_WARN("%zu MiB of weights, but %zu MiB of memory available: they stay in the model file's mapping, unpacked (slower)",
               bytes >> 20, limit >> 20);
    return false;
}

} // namespace

void set_own_buffer_type(const host::buffer_type * own) { own_buffer_type = own; }

bool is_own(const host::buffer * buffer) { return buffer != nullptr && buffer->buft == own_buffer_type; }

memory * memory_of(const host::tensor * t) {
    const host::buffer * buffer = root_of(t)->buffer;
    return is_own(buffer) ? static_cast<memory *>(buffer->context) : nullptr;
}

std::unique_ptr<memory> memory::plain(size_t bytes) {
    std::unique_ptr<memory> m(new memory);
    m->base_ = os::allocate(bytes);
    if (m->base_ == nullptr) return nullptr;
    m->bytes_ = m->committed_ = bytes;
    count(counter::compute_bytes, bytes);
    return m;
}

size_t memory::bytes_for(host::tensor ** tensors, int n) {
    size_t total = 0;
    for (int i = 0; i < n; i++) {
        if (is_ours_to_place(tensors[i])) total += place_of(tensors[i]);
    }
    return total;
}

size_t memory::expected_bytes(host::tensor ** tensors, int n) {
    const kv::policy policy = kv::wanted_policy();
    size_t total = 0;
    for (int i = 0; i < n; i++) {
        if (!is_ours_to_place(tensors[i])) continue;
        kv::cache_name name;
        const size_t place = place_of(tensors[i]);
        const bool compressed = policy.lossy && kv::parse_cache_name(tensors[i]->name, name) && !name.is_side_cache;
        total += compressed ? std::min(place, kv::expected_bytes(policy, tensors[i]->ne[0], tensors[i]->ne[1] * tensors[i]->ne[2], tensors[i]->nb[1])) : place;
    }
    return total;
}

std::unique_ptr<memory> memory::for_tensors(host::tensor ** tensors, int n) {
    std::unique_ptr<memory> m(new memory);
    m->purpose_ = purpose_of(tensors, n);
    m->bytes_ = bytes_for(tensors, n);
    if (m->purpose_ == purpose::weights) {
        const bool short_of_memory = !weights_fit(m->bytes_);
        for (int i = 0; i < n; i++) {
            if (is_ours_to_place(tensors[i])) m->weights_.add(tensors[i], short_of_memory);
        }
    }

    // Tensors with memory of ours first, those with only an address range behind them.
    m->offsets_.assign(static_cast<size_t>(n), SIZE_MAX);
    size_t next = 0;
    for (const bool with_memory : {true, false}) {
        for (int i = 0; i < n; i++) {
            if (!is_ours_to_place(tensors[i]) || m->weights_.needs_memory(tensors[i]) != with_memory) continue;
            m->offsets_[i] = next;
            next += place_of(tensors[i]);
        }
        if (with_memory) m->committed_ = next;
    }

    if (m->purpose_ == purpose::kv) kv::announce(kv::wanted_policy());
    m->base_ = os::reserve(m->bytes_);
    if (m->base_ == nullptr || (m->committed_ > 0 && !os::commit(m->base_, m->committed_))) {
        ALLOY_ERROR("no memory for a buffer of %zu MiB", m->bytes_ >> 20);
        return nullptr;
    }
    // Weights are written once from end to end. A cache is not: huge pages would commit memory for cells that are never used.
    if (m->purpose_ == purpose::weights) os::advise_huge(m->base_, m->committed_);
    else count(counter_of(m->purpose_), m->bytes_);
    return m;
}

memory::~memory() {
    if (base_ == nullptr) return;
    if (purpose_ != purpose::weights) uncount(counter_of(purpose_), bytes_);
    os::release(base_, bytes_);
}

bool memory::place(host::buffer * buffer, host::tensor ** tensors, int n) {
    const auto & host = host::api();
    for (int i = 0; i < n; i++) {
        host::tensor * t = tensors[i];
        if (offsets_[i] != SIZE_MAX) {
            void * address = static_cast<char *>(base_) + offsets_[i];
            if (host.ggml_backend_tensor_alloc(buffer, t, address) != host::status_success) return false;
            kv::cache_name name;
            if (purpose_ == purpose::kv && kv::parse_cache_name(t->name, name)) {
                caches_.add(*t, address, host.ggml_nbytes(t));
            }
        } else if (t->view_src != nullptr && t->buffer == nullptr) {
            if (host.ggml_backend_view_init(t) != host::status_success) return false;
        }
    }
    caches_.sort();
    return weights_.place();
}

bool memory::admit(const host::tensor * t, const char * what, size_t offset, size_t bytes) {
    const size_t size = host::api().ggml_nbytes(t);
    const auto address = reinterpret_cast<uintptr_t>(t->data);
    bool inside = offset <= size && bytes <= size - offset;
    if (const weights::weight * w = weights_.find(address)) {
        const size_t at = address - w->address;
        inside = inside && size <= w->bytes - at;
    } else {
        const auto base = reinterpret_cast<uintptr_t>(base_);
        inside = inside && address >= base && address - base <= bytes_ && size <= bytes_ - (address - base);
    }
    if (!inside) {
        ALLOY_ERROR("%s of %.64s: bytes [%zu, +%zu), expected within [0, %zu); refused, the next graph fails", what, t->name, offset,
                    bytes, size);
        count(counter::refused_accesses);
        refused_ = true;
    }
    return inside;
}

void memory::write(const host::tensor * t, const void * data, size_t offset, size_t bytes) {
    if (bytes == 0 || !admit(t, "write", offset, bytes)) return;
    const uintptr_t address = reinterpret_cast<uintptr_t>(t->data) + offset;
    if (weights::weight * w = weights_.find(address)) {
        if (!weights_.write(*w, data, address - w->address, bytes)) refused_ = true;
    } else if (kv::cache_tensor * c = find_cache(address)) {
        c->write(data, address - c->address(), bytes);
    } else {
        std::memcpy(reinterpret_cast<void *>(address), data, bytes);
    }
}

void memory::read(const host::tensor * t, void * data, size_t offset, size_t bytes) {
    if (bytes == 0 || !admit(t, "read", offset, bytes)) return;
    const uintptr_t address = reinterpret_cast<uintptr_t>(t->data) + offset;
    if (weights::weight * w = weights_.find(address)) {
        if (!weights_.read(*w, data, address - w->address, bytes)) refused_ = true;
    } else if (kv::cache_tensor * c = find_cache(address)) {
        c->read(data, address - c->address(), bytes);
    } else {
        std::memcpy(data, reinterpret_cast<const void *>(address), bytes);
    }
}

void memory::fill(const host::tensor * t, uint8_t value, size_t offset, size_t bytes) {
    if (bytes == 0 || !admit(t, "memset", offset, bytes)) return;
    const uintptr_t address = reinterpret_cast<uintptr_t>(t->data) + offset;
    if (weights::weight * w = weights_.find(address)) {
        const std::vector<uint8_t> same(bytes, value);
        if (!weights_.write(*w, same.data(), address - w->address, bytes)) refused_ = true;
    } else if (kv::cache_tensor * c = find_cache(address)) {
        c->fill(value, address - c->address(), bytes);
    } else {
        std::memset(reinterpret_cast<void *>(address), value, bytes);
    }
}

void memory::clear(uint8_t value) {
    if (purpose_ == purpose::weights) { // few of them lie there byte by byte
        if (!weights_.fill(value)) refused_ = true;
        return;
    }
    caches_.clear(); // sealed pages too
    if (value == 0 && purpose_ == purpose::kv) return; // pages outside the caches' views were never written
    if (committed_ == 0) return;
    if (value == 0 && os::drop_pages(base_, committed_)) {
        const size_t whole = committed_ / os::page_bytes() * os::page_bytes();
        std::memset(static_cast<char *>(base_) + whole, 0, committed_ - whole);
        return;
    }
    std::memset(base_, value, committed_);
}

bool memory::copy(const host::tensor * from, const memory & source, const host::tensor * to) {
    auto & other = const_cast<memory &>(source);
    const size_t bytes = host::api().ggml_nbytes(from);
    if (!other.admit(from, "copy", 0, bytes) || !admit(to, "copy", 0, bytes)) return true; // refused is answered: nothing to retry
    const auto from_address = reinterpret_cast<uintptr_t>(from->data), to_address = reinterpret_cast<uintptr_t>(to->data);
    if (other.weights_.find(from_address) != nullptr || weights_.find(to_address) != nullptr) return false;
    kv::cache_tensor * from_cache = other.find_cache(from_address);
    kv::cache_tensor * to_cache = find_cache(to_address);
    if (from_cache != nullptr && to_cache != nullptr) {
        return to_cache->copy_from(*from_cache, from_address - from_cache->address(), to_address - to_cache->address(), bytes);
    }
    if (from_cache != nullptr || to_cache != nullptr) return false;
    std::memmove(to->data, from->data, bytes);
    return true;
}

} // namespace alloy::graph
