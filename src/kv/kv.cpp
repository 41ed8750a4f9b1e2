#include "kv/kv.h"

#include <algorithm>
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

void store::add(const host::tensor & declared, void * address, size_t bytes) {
    caches_.push_back(std::make_unique<cache_tensor>(declared, address, bytes, policy_, arena_, rates_, evicted_, exact_));
}

void store::sort() {
    std::sort(caches_.begin(), caches_.end(), [](const auto & a, const auto & b) { return a->address() < b->address(); });
}

cache_tensor * store::find(uintptr_t address) {
    auto after = std::upper_bound(caches_.begin(), caches_.end(), address, [](uintptr_t a, const auto & c) { return a < c->address(); });
    if (after == caches_.begin()) return nullptr;
    cache_tensor * c = std::prev(after)->get();
    return address < c->address() + c->bytes() ? c : nullptr;
}

void store::clear() {
    for (auto & c : caches_) c->clear();
    evicted_.forget();
    exact_.clear();
}

} // namespace alloy::kv
