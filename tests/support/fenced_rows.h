// Memory for rows under test: every byte that is not a row is 0xFF (as f32 a NaN), and the page behind the last row is closed.
// A kernel that reads into the gaps makes NaNs, one that writes there is found by gaps_untouched(), one that goes past the end
// stops the test.
#pragma once
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

namespace alloy::test {

class fenced_rows {
  public:
    // `tail` more bytes lie between the last row and the closed page; it shifts all rows against the alignment of the page.
    fenced_rows(int64_t num_rows, size_t row_bytes, size_t stride, size_t tail = 0)
        : num_rows_(num_rows), row_bytes_(row_bytes), stride_(stride) {
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        const size_t used = static_cast<size_t>(num_rows) * stride + tail;
        const size_t open = (used + 64 + page - 1) / page * page; // 64: there is a gap before the first row as well
        size_ = open + page;
        void * memory = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) std::abort();
        base_ = static_cast<uint8_t *>(memory);
        mprotect(base_ + open, page, PROT_NONE);
        end_ = base_ + open;
        // The last row ends at the tail: what its stride leaves goes before the first row.
        first_ = end_ - used + (num_rows > 0 ? stride - row_bytes : 0);
        std::memset(base_, 0xFF, open);
    }
    ~fenced_rows() { munmap(base_, size_); }
    fenced_rows(const fenced_rows &) = delete;
    fenced_rows & operator=(const fenced_rows &) = delete;

    template <class T> T * row(int64_t r) { return reinterpret_cast<T *>(first_ + r * static_cast<int64_t>(stride_)); }
    int64_t stride() const { return static_cast<int64_t>(stride_); }

    testing::AssertionResult gaps_untouched() const {
        const uint8_t * gap = base_;
        for (int64_t r = 0; r <= num_rows_; r++) {
            const uint8_t * row = r < num_rows_ ? first_ + static_cast<size_t>(r) * stride_ : end_;
            for (; gap < row; gap++) {
                if (*gap != 0xFF) return testing::AssertionFailure() << "byte " << gap - first_ << " of the rows is no output";
            }
            gap = row + row_bytes_;
        }
        return testing::AssertionSuccess();
    }

  private:
    int64_t num_rows_;
    size_t row_bytes_, stride_, size_ = 0;
    uint8_t *base_ = nullptr, *first_ = nullptr, *end_ = nullptr;
};

} // namespace alloy::test
