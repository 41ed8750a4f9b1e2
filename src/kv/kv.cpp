#include "kv/kv.h"

#include "base/os.h"

#include <cstdlib>
#include <cstring>

namespace alloy::kv {

bool parse_cache_name(const char * name, cache_name & parsed) {
    if (std::strncmp(name, "cache_", 6) != 0) return false;
    const char * rest = name + 6;
    const char * layer = std::strstr(rest, "_l");
    if (layer == nullptr || layer == rest) return false;
    const char kind = layer[-1];
    if ((kind != 'k' && kind != 'v') || (layer - rest > 1 && layer[-2] != '_')) return false;
    char * end = nullptr;
    const long index = std::strtol(layer + 2, &end, 10);
    if (end == layer + 2 || *end != 0) return false;
    parsed = {kind == 'v', layer - rest > 1, static_cast<int>(index)};
    return true;
}

bool is_state_name(const char * name) {
    return std::strncmp(name, "cache_r_l", 9) == 0 || std::strncmp(name, "cache_s_l", 9) == 0;
}

cache_tensor::cache_tensor(const host::tensor & declared, void * address, size_t bytes)
    : type_(declared.type), address_(reinterpret_cast<uintptr_t>(address)), bytes_(bytes) {
    parse_cache_name(declared.name, name_);
}

void cache_tensor::write(const void * data, size_t offset, size_t bytes) {
    std::memcpy(reinterpret_cast<void *>(address_ + offset), data, bytes);
}

void cache_tensor::read(void * data, size_t offset, size_t bytes) const {
    std::memcpy(data, reinterpret_cast<const void *>(address_ + offset), bytes);
}

void cache_tensor::fill(uint8_t value, size_t offset, size_t bytes) {
    std::memset(reinterpret_cast<void *>(address_ + offset), value, bytes);
}

void cache_tensor::clear() {
    // Whole pages go back to the system and read as zero again; the ragged ends are shared with neighbours and are zeroed by hand.
    const uintptr_t page = os::page_bytes(), end = address_ + bytes_;
    const uintptr_t first = (address_ + page - 1) / page * page, last = end / page * page;
    if (first >= last || !os::drop_pages(reinterpret_cast<void *>(address_), bytes_)) {
        fill(0, 0, bytes_);
        return;
    }
    fill(0, 0, first - address_);
    fill(0, last - address_, end - last);
}

bool cache_tensor::copy_from(const cache_tensor & source, size_t source_offset, size_t offset, size_t bytes) {
    if (source.type_ != type_) return false;
    std::memmove(reinterpret_cast<void *>(address_ + offset), reinterpret_cast<const void *>(source.address_ + source_offset), bytes);
    return true;
}

bool cache_tensor::materialise() { return true; } // plain rows always are

kv_view plain_view(const host::tensor & t) {
    kv_view v{{}, t.ne[0], t.ne[2], t.ne[3], t.ne[1], static_cast<int64_t>(t.nb[1]), false, nullptr, (t.ne[1] + attention_block - 1) / attention_block, {}};
    cell_type_of_host(t.type, v.declared);
    const attention_cells * cells = find_attention(v.declared);
    v.own.reserve(static_cast<size_t>(v.streams * v.heads * v.pages_a_head));
    for (int64_t stream = 0; stream < v.streams; stream++) {
        for (int64_t head = 0; head < v.heads; head++) {
            const auto * data = static_cast<const uint8_t *>(t.data) + stream * static_cast<int64_t>(t.nb[3]) + head * static_cast<int64_t>(t.nb[2]);
            for (int64_t block = 0; block < v.pages_a_head; block++) v.own.push_back({data + block * attention_block * v.stride, cells});
        }
    }
    v.pages = v.own.data();
    return v;
}

kv_view cache_tensor::view(const host::tensor & t) const { return plain_view(t); }

} // namespace alloy::kv
