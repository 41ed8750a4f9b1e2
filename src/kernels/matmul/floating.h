// Part of generic.h: weights of type f32, f16 and bf16 times f32 activations.
namespace alloy {
namespace {

// Two columns of k at once: [2] vectors of f32, rows of one part.
template <weight_type type> inline void load_pair(const uint8_t * pair, int part, vec::floats & w0, vec::floats & w1) {
    if constexpr (type == weight_type::f32) {
        w0 = vec::load_floats(reinterpret_cast<const float *>(pair) + part * vec::rows);
        w1 = vec::load_floats(reinterpret_cast<const float *>(pair) + packed_rows + part * vec::rows);
    } else if constexpr (type == weight_type::f16) {
        w0 = vec::load_halves(pair + 2 * part * vec::rows);
        w1 = vec::load_halves(pair + 32 + 2 * part * vec::rows);
    } else {
        vec::load_bf16_pairs(pair + part * part_bytes, w0, w1);
    }
}
template <weight_type type> constexpr int64_t pair_bytes = type == weight_type::f32 ? 128 : 64;

template <weight_type type, int n> [[gnu::noinline]] void few_floating(const matmul_args & args) {
    const float * x[n];
    for (int c = 0; c < n; c++) x[c] = static_cast<const float *>(args.acts[c]);
    const int64_t groups = packed_groups(args.num_rows), pairs = args.k / 2;
    constexpr int chains = n == 1 ? 4 : n < 4 ? 2 : 1; // of pairs, to cover the latency of fma
    for (int64_t g = 0; g < groups; g++) {
        const uint8_t * group = args.weights + g * args.stride_group;
        alignas(64) float sums[n][packed_rows];
        for (int p = 0; p < parts; p++) {
            vec::floats acc[n][2 * chains];
            for (int c = 0; c < n; c++)
                for (int i = 0; i < 2 * chains; i++) acc[c][i] = vec::zero();
            auto step = [&](int64_t q, int chain) {
                vec::floats w0, w1;
                load_pair<type>(group + q * pair_bytes<type>, p, w0, w1);
                for (int c = 0; c < n; c++) {
                    acc[c][2 * chain] = vec::fma(w0, vec::broadcast(x[c] + 2 * q), acc[c][2 * chain]);
                    acc[c][2 * chain + 1] = vec::fma(w1, vec::broadcast(x[c] + 2 * q + 1), acc[c][2 * chain + 1]);
                }
            };
            int64_t q = 0;
            for (; q < pairs / chains * chains; q += chains) {
                if (p == 0) {
                    for (int64_t line = 0; line < chains * pair_bytes<type>; line += 64) {
                        vec::prefetch_stream(group + q * pair_bytes<type> + prefetch_distance + line);
                    }
                }
                for (int chain = 0; chain < chains; chain++) step(q + chain, chain);
            }
            for (; q < pairs; q++) step(q, 0);
            if (args.k % 2 != 0) { // the second of the last pair does not exist: f16 and f32 end, bf16 is padded
                vec::floats w0, w1;
                if constexpr (type == weight_type::bf16) load_pair<type>(group + q * pair_bytes<type>, p, w0, w1);
                else if constexpr (type == weight_type::f16) w0 = vec::load_halves(group + q * 64 + 2 * p * vec::rows);
                else w0 = vec::load_floats(reinterpret_cast<const float *>(group + q * 128) + p * vec::rows);
                for (int c = 0; c < n; c++) acc[c][0] = vec::fma(w0, vec::broadcast(x[c] + 2 * q), acc[c][0]);
            }
            for (int c = 0; c < n; c++) {
                for (int i = 1; i < 2 * chains; i++) acc[c][0] = vec::add(acc[c][0], acc[c][i]);
                vec::store_floats(sums[c] + p * vec::rows, acc[c][0]);
            }
        }
        const int64_t first = g * packed_rows, rows = args.num_rows - first < packed_rows ? args.num_rows - first : packed_rows;
        for (int c = 0; c < n; c++) write_out(args, c, first, rows, sums[c]);
    }
}

template <weight_type type> [[gnu::noinline]] void many_floating(const matmul_args & args) {
    
    constexpr int64_t depth = 128; // columns of k in a panel: 16 KiB for 32 rows
    alignas(64) float p[depth][panel_rows];
    alignas(64) float sums[columns_at_once * panel_rows];
    const int64_t groups = packed_groups(args.num_rows);
    for (int64_t c0 = 0; c0 < args.n; c0 += columns_at_once) {
        const int64_t n = args.n - c0 < columns_at_once ? args.n - c0 : columns_at_once;
        for (int64_t g = 0; g < groups; g += tile::groups) {
            for (int64_t i = 0; i < n * panel_rows; i++) sums[i] = 0;
            for (int64_t k0 = 0; k0 < args.k; k0 += depth) {
                const int64_t k = args.k - k0 < depth ? args.k - k0 : depth;
                for (int h = 0; h < tile::groups; h++) {
                    const int64_t index = g + h < groups ? g + h : groups - 1;
                    const uint8_t * from = args.weights + index * args.stride_group + k0 / 2 * pair_bytes<type>;
                    for (int64_t i = 0; i < k; i += 2) {
                        for (int part = 0; part < parts; part++) {
                            const int at = h * packed_rows + part * vec::rows;
                            vec::floats w0, w1;
                            if (i + 1 < k || type == weight_type::bf16) {
                                load_pair<type>(from + i / 2 * pair_bytes<type>, part, w0, w1);
                            } else {
                                if constexpr (type == weight_type::f16) w0 = vec::load_halves(from + i * 32 + 2 * part * vec::rows);
                                else w0 = vec::load_floats(reinterpret_cast<const float *>(from + i * 64) + part * vec::rows);
                                w1 = vec::zero();
                            }
                            vec::store_floats(p[i] + at, w0);
                            if (i + 1 < k) vec::store_floats(p[i + 1] + at, w1);
                        }
                    }
                }
                for (int64_t c = 0; c < n; c += tile::columns) {
                    const float * x[tile::columns];
                    const int now = static_cast<int>(n - c < tile::columns ? n - c : tile::columns);
                    for (int i = 0; i < now; i++) x[i] = static_cast<const float *>(args.acts[c0 + c + i]) + k0;
                    multiply_floats(&p[0][0], k, x, now, sums + c * panel_rows);
                }
            }
            const int64_t first = g * packed_rows, rows = args.num_rows - first < panel_rows ? args.num_rows - first : panel_rows;
            write_all_out(args, c0, n, first, rows, sums);
        }
    }
}

} // namespace
} // namespace alloy
