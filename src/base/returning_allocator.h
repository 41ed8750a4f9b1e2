// An allocator for vectors that live for a moment: large ones are mappings of their own, which go back to the system as soon as they are freed.
// The heap would keep them for later.
#pragma once
#include "base/os.h"

#include <cstddef>
#include <new>
#include <vector>

namespace alloy {

template <class T> struct returning_allocator {
    using value_type = T;
    static constexpr size_t large = 1 << 16; // bytes

    returning_allocator() = default;
    template <class U> returning_allocator(const returning_allocator<U> &) {}
    T * allocate(size_t n) {
        const size_t bytes = n * sizeof(T);
        if (bytes < large) return static_cast<T *>(::operator new(bytes));
        void * memory = os::reserve(bytes);
        if (memory != nullptr && os::commit(memory, bytes)) return static_cast<T *>(memory);
        if (memory != nullptr) os::release(memory, bytes);
        throw std::bad_alloc();
    }
    void deallocate(T * memory, size_t n) {
        if (n * sizeof(T) < large) ::operator delete(memory);
        else os::release(memory, n * sizeof(T));
    }
    bool operator==(const returning_allocator &) const { return true; }
};
template <class T> using returning_vector = std::vector<T, returning_allocator<T>>;

} // namespace alloy
