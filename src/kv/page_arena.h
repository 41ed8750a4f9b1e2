// Memory of sealed pages. Pages of one size share extents, large aligned mappings; an extent without pages goes back to the system.
#pragma once
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace alloy::kv {

class page_arena {
  public:
    page_arena() = default;
    ~page_arena();
    page_arena(const page_arena &) = delete;
    page_arena & operator=(const page_arena &) = delete;

    // A page of `bytes`, a multiple of 64, aligned to 64. Null when memory is short. Any thread.
    uint8_t * take(size_t bytes);
    void give_back(uint8_t * page, size_t bytes);

    static constexpr size_t extent_bytes = size_t(1) << 20;

  private:
    // Stands at the start of its mapping, which is aligned to its size: a page finds its extent by its address.
    struct extent {
        uint8_t * free;  // list through the first bytes of the pages
        size_t fresh;    // offset of what was never given out; memory beyond has not been touched
        size_t used;     // pages given out
        size_t position; // in the list of its size
    };
    struct size_class {
        size_t bytes;
        std::vector<extent *> extents; // those with room first
        size_t with_room;
    };
    size_class & class_of(size_t bytes);
    static bool has_room(const extent & e, size_t bytes) { return e.free != nullptr || e.fresh + bytes <= extent_bytes; }
    static void swap_to(size_class & c, extent * e, size_t position);

    std::mutex lock_;
    std::vector<size_class> classes_;
};

} // namespace alloy::kv
