// What the x86 files of family matmul share: the f32 tile, 2 vectors of rows x 6 columns, all 12 sums in registers.
namespace alloy {
namespace {

template <int n> void multiply_floats_n(const float * w, int64_t k, const float * const * x, float * sums) {
    for (int first = 0; first < panel_rows; first += 2 * vec::rows) {
        vec::floats acc0[n], acc1[n];
        for (int c = 0; c < n; c++) {
            acc0[c] = vec::load_floats(sums + panel_rows * c + first);
            acc1[c] = vec::load_floats(sums + panel_rows * c + first + vec::rows);
        }
        for (int64_t i = 0; i < k; i++) {
            const float * row = w + panel_rows * i + first;
            const vec::floats w0 = vec::load_floats(row), w1 = vec::load_floats(row + vec::rows);
            for (int c = 0; c < n; c++) {
                const vec::floats b = vec::broadcast(x[c] + i);
                acc0[c] = vec::fma(w0, b, acc0[c]);
                acc1[c] = vec::fma(w1, b, acc1[c]);
            }
        }
        for (int c = 0; c < n; c++) {
            vec::store_floats(sums + panel_rows * c + first, acc0[c]);
            vec::store_floats(sums + panel_rows * c + first + vec::rows, acc1[c]);
        }
    }
}

inline void multiply_floats(const float * w, int64_t k, const float * const * x, int n, float * sums) {
    for (; n >= 6; n -= 6, x += 6, sums += 6 * panel_rows) multiply_floats_n<6>(w, k, x, sums);
    switch (n) {
        case 1: return multiply_floats_n<1>(w, k, x, sums);
        case 2: return multiply_floats_n<2>(w, k, x, sums);
        case 3: return multiply_floats_n<3>(w, k, x, sums);
        case 4: return multiply_floats_n<4>(w, k, x, sums);
        case 5: return multiply_floats_n<5>(w, k, x, sums);
        default: return;
    }
}

} // namespace
} // namespace alloy
