#include "kv/page_arena.h"

#include "base/check.h"
#include "base/os.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace alloy::kv {

page_arena::~page_arena() {
    for (const size_class & c : classes_) {
        for (extent * e : c.extents) os::release(e, extent_bytes);
    }
}

page_arena::size_class & page_arena::class_of(size_t bytes) {
    const auto found = std::find_if(classes_.begin(), classes_.end(), [&](const size_class & c) { return c.bytes == bytes; });
    if (found != classes_.end()) return *found;
    classes_.push_back({bytes, {}, 0});
    return classes_.back();
}

void page_arena::swap_to(size_class & c, extent * e, size_t position) {
    extent * other = c.extents[position];
    std::swap(c.extents[e->position], c.extents[position]);
    std::swap(e->position, other->position);
}

uint8_t * page_arena::take(size_t bytes) {
    ALLOY_EXPECT(bytes % 64 == 0 && bytes > 0 && bytes <= extent_bytes - 64);
    static_assert(sizeof(extent) <= 64);
    std::lock_guard guard(lock_);
    size_class & c = class_of(bytes);
    if (c.with_room == 0) {
        void * memory = os::reserve_aligned(extent_bytes, extent_bytes);
        if (memory == nullptr) return nullptr;
        if (!os::commit(memory, extent_bytes)) {
            os::release(memory, extent_bytes);
            return nullptr;
        }
        c.extents.push_back(new (memory) extent{nullptr, 64, 0, c.extents.size()});
        swap_to(c, c.extents.back(), 0);
        c.with_room = 1;
    }
    extent * e = c.extents[c.with_room - 1];
    uint8_t * page = e->free;
    if (page != nullptr) {
        std::memcpy(&e->free, page, sizeof(e->free));
    } else {
        page = reinterpret_cast<uint8_t *>(e) + e->fresh;
        e->fresh += bytes;
    }
    e->used++;
    if (!has_room(*e, bytes)) c.with_room--; // it is the last of those
    return page;
}

void page_arena::give_back(uint8_t * page, size_t bytes) {
    std::lock_guard guard(lock_);
    size_class & c = class_of(bytes);
    auto * e = reinterpret_cast<extent *>(reinterpret_cast<uintptr_t>(page) / extent_bytes * extent_bytes);
    if (e->position >= c.with_room) swap_to(c, e, c.with_room++);
    std::memcpy(page, &e->free, sizeof(e->free));
    e->free = page;
    if (--e->used > 0) return;
    swap_to(c, e, c.with_room - 1); // out of the list
    c.with_room--;
    swap_to(c, e, c.extents.size() - 1);
    c.extents.pop_back();
    os::release(e, extent_bytes);
}

} // namespace alloy::kv
