// Arrays one after another, each at a cache line, in memory of the caller. Without memory it only measures, so that a layout is written
// once: for its size and for its addresses.
#pragma once
#include <cstddef>
#include <cstdint>

namespace alloy {

class arena {
  public:
    explicit arena(void * memory) : memory_(static_cast<char *>(memory)) {}
    template <class T> T * take(int64_t count) {
        char * taken = memory_ == nullptr ? nullptr : memory_ + bytes_;
        bytes_ += (count * static_cast<int64_t>(sizeof(T)) + line - 1) / line * line;
        return reinterpret_cast<T *>(taken);
    }
    int64_t floats() const { return bytes_ / static_cast<int64_t>(sizeof(float)); } // taken so far

  private:
    static constexpr int64_t line = 64;
    char * memory_;
    int64_t bytes_ = 0;
};

} // namespace alloy
