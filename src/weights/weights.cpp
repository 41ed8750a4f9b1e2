#include "weights/weights.h"

#include "base/counters.h"
#include "base/log.h"
#include "base/options.h"
#include "base/os.h"
#include "base/thread_pool.h"
#include "host/cpu.h"
#include "host/ops.h"
#include "host/symbols.h"
#include "kernels/matmul/matmul.h"
#include "weights/shadow_map.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

namespace alloy::weights {
namespace {

std::mutex registry_mutex;
std::unordered_map<std::string, host::op> offers; // what each weight was probed with
std::map<int, int> layer_weights;                 // layer -> weights held now

std::string key_of(const host::tensor * w) {
    std::string key(w->name);
    for (int64_t n : w->ne) key += "," + std::to_string(n);
    return key + ":" + std::to_string(w->type);
}

void count_layer(const host::tensor & w, int by) {
    const int layer = layer_of(w.name);
    if (layer < 0) return;
    std::lock_guard lock(registry_mutex);
    layer_weights[layer] += by;
}

host::tensor dense(int type, const int64_t (&ne)[host::max_dims]) {
    host::tensor t{};
    t.type = type;
    std::copy(std::begin(ne), std::end(ne), t.ne);
    t.nb[0] = 4; // only f32 and i32 are made here
    for (int i = 1; i < host::max_dims; i++) t.nb[i] = t.nb[i - 1] * static_cast<size_t>(t.ne[i - 1]);
    return t;
}

// Asks the host's CPU device, as its own loader would, whether `w` may live in `type` when `used_by` (MUL_MAT or MUL_MAT_ID) reads it.
bool host_accepts(host::buffer_type * type, const host::tensor & w, host::op used_by) {
    host::tensor source = w;
    source.view_src = nullptr;
    source.data = nullptr;
    source.buffer = host::api().ggml_backend_buft_alloc_buffer(type, 0);
    if (source.buffer == nullptr) return false;
    const bool experts = used_by == host::op::mul_mat_id;
    host::tensor ids = dense(host::type_i32, {1, 512, 1, 1});
    host::tensor acts = experts ? dense(host::type_f32, {w.ne[0], 1, 512, 1}) : dense(host::type_f32, {w.ne[0], 512, w.ne[2], w.ne[3]});
    host::tensor node = experts ? dense(host::type_f32, {w.ne[1], 1, 512, 1}) : dense(host::type_f32, {w.ne[1], 512, w.ne[2], w.ne[3]});
    node.op = host::op_number(used_by);
    node.src[0] = &source;
    node.src[1] = &acts;
    node.src[2] = experts ? &ids : nullptr;
    const bool accepts = host::cpu_supports(&node);
    host::api().ggml_backend_buffer_free(source.buffer);
    return accepts;
}

host::buffer_type * best_shadow_type(const host::tensor & w) {
    host::op used_by;
    {
        std::lock_guard lock(registry_mutex);
        const auto offer = offers.find(key_of(&w));
        if (offer == offers.end()) return nullptr;
        used_by = offer->second;
    }
    for (host::buffer_type * type : host::cpu_repack_buffer_types()) {
        if (host_accepts(type, w, used_by)) return type;
    }
    return nullptr;
}

// Whether the host would run `t` with kernels that ours were never measured against (AMX, KleidiAI): then those stay.
bool host_has_special_kernels(const host::tensor & t) {
    for (host::buffer_type * type : host::cpu_repack_buffer_types()) {
        if (std::strcmp(host::api().ggml_backend_buft_name(type), "CPU_REPACK") != 0) return best_shadow_type(t) == type;
    }
    return false;
}

// What `t` can be packed as: it was offered as a matrix and a kernel reads its type. Decided by the tensor alone, so that the size
// asked for before there is a weight and the weight itself agree.
weight_type packed_type_of(const host::tensor * t) {
    if (host::op_of(t) != host::op::none) return weight_type::count; // results of a graph are asked about too, by the thousand
    const weight_type type = weight_type_of(t->type);
    if (type == weight_type::count || !is_on(option::kernels) || !was_offered(t) || find_matmul(type) == nullptr) return weight_type::count;
    if (t->ne[0] % format_of(type).block != 0 || t->ne[3] != 1) return weight_type::count;
    return is_on(option::shadow) && host_has_special_kernels(*t) ? weight_type::count : type;
}

// --- rows of packed matrices --------------------------------------------------------------------------------------------------------
// Rows [first, last) of all matrices of a weight, moved by all threads group by group.
struct row_move {
    const weight & w;
    uint8_t * gguf; // of row `first`
    int64_t first, last;
    bool packing;

    void move_group(int64_t group) const { // counted over all matrices
        const host::tensor & t = w.described;
        const int64_t groups = packed_groups(t.ne[1]), matrix = group / groups;
        const int64_t start = matrix * t.ne[1] + group % groups * packed_rows;
        const int64_t end = std::min(start + packed_rows, (matrix + 1) * t.ne[1]);
        const int64_t from = std::max(first, start), to = std::min(last, end);
        if (from >= to) return;
        auto * packed = reinterpret_cast<uint8_t *>(w.address) + group * packed_group_bytes(format_of(w.packed_as), t.ne[0]);
        const auto stride = static_cast<int64_t>(t.nb[1]);
        uint8_t * rows = gguf + (from - first) * stride;
        const int in_group = static_cast<int>(from - start), n = static_cast<int>(to - from);
        if (packing) pack_rows(w.packed_as, t.ne[0], rows, stride, in_group, n, packed);
        else unpack_rows(w.packed_as, t.ne[0], rows, stride, in_group, n, packed);
    }
    int64_t group_of(int64_t row) const {
        const int64_t rows = w.described.ne[1];
        return row / rows * packed_groups(rows) + row % rows / packed_rows;
    }
    void run() const {
        constexpr int64_t rows_worth_a_thread = 64;
        auto share = [](void * user, int thread, int num_threads) {
            const auto & move = *static_cast<const row_move *>(user);
            for (int64_t g = move.group_of(move.first) + thread, end = move.group_of(move.last - 1); g <= end; g += num_threads) {
                move.move_group(g);
            }
        };
        const int threads = static_cast<int>(std::min<int64_t>(os::usable_cpus(), (last - first) / rows_worth_a_thread + 1));
        run_on_pool(threads, share, const_cast<row_move *>(this));
    }
};

} // namespace

void note_offer(const host::tensor * node) {
    const host::op used_by = host::op_of(node);
    if ((used_by != host::op::mul_mat && used_by != host::op::mul_mat_id) || node->src[0] == nullptr) return;
    std::lock_guard lock(registry_mutex);
    offers.emplace(key_of(node->src[0]), used_by);
}

bool was_offered(const host::tensor * weight) {
    std::lock_guard lock(registry_mutex);
    return offers.count(key_of(weight)) != 0;
}

int layer_of(const char * name) {
    if (std::strncmp(name, "blk.", 4) != 0) return -1;
    char * end = nullptr;
    const long layer = std::strtol(name + 4, &end, 10);
    return end != name + 4 && *end == '.' ? static_cast<int>(layer) : -1;
}

bool owns_layer(int index) {
    std::lock_guard lock(registry_mutex);
    const auto found = layer_weights.find(index);
    return found != layer_weights.end() && found->second > 0;
}

weight_set::~weight_set() {
    for (const auto & w : weights_) {
        count_layer(w->described, -1);
        uncount(counter::weight_bytes, w->bytes);
        if (w->where == layout::shadow) uncount(counter::shadow_bytes, w->bytes);
        if (w->where == layout::file) uncount(counter::file_bytes, w->bytes);
        if (w->where == layout::packed) uncount(counter::packed_bytes, w->bytes);
        if (w->plain_rows != nullptr) os::release(w->plain_rows, w->bytes);
    }
    for (host::buffer * buffer : shadow_buffers_) host::api().ggml_backend_buffer_free(buffer);
    for (auto [base, bytes] : file_views_) os::release(base, bytes);
}

size_t weight_set::bytes_for(const host::tensor * t) {
    const size_t plain = host::api().ggml_nbytes(t);
    const weight_type type = packed_type_of(t);
    if (type == weight_type::count) return plain;
    const int64_t packed = packed_group_bytes(format_of(type), t->ne[0]) * packed_groups(t->ne[1]) * t->ne[2];
    return std::max(plain, static_cast<size_t>(packed));
}

void weight_set::add(host::tensor * t, bool short_of_memory) {
    auto w = std::make_unique<weight>();
    w->described = *t;
    w->bytes = host::api().ggml_nbytes(t);
    w->handle = t;
    if (short_of_memory) w->where = layout::file;
    else if ((w->packed_as = packed_type_of(t)) != weight_type::count) w->where = layout::packed;
    else if (is_on(option::shadow) && (w->shadow_type = best_shadow_type(*t)) != nullptr) w->where = layout::shadow;
    weights_.push_back(std::move(w));
}

bool weight_set::needs_memory(const host::tensor * t) const {
    return std::none_of(weights_.begin(), weights_.end(), [&](const auto & w) {
        return w->handle == t && (w->where == layout::shadow || w->where == layout::file);
    });
}

bool weight_set::place() {
    for (auto & w : weights_) {
        w->address = reinterpret_cast<uintptr_t>(w->handle->data);
        count_layer(w->described, 1);
        count(counter::weight_bytes, w->bytes);
        if (w->where == layout::shadow) count(counter::shadow_bytes, w->bytes);
        if (w->where == layout::packed) count(counter::packed_bytes, w->bytes);
    }
    std::sort(weights_.begin(), weights_.end(), [](const auto & a, const auto & b) { return a->address < b->address; });
    return make_shadows();
}

// One host buffer for each repacking type, all its weights in a row.
bool weight_set::make_shadows() {
    const auto & host = host::api();
    std::map<host::buffer_type *, std::vector<weight *>> by_type;
    for (auto & w : weights_) {
        if (w->where == layout::shadow) by_type[w->shadow_type].push_back(w.get());
    }
    for (auto & entry : by_type) {
        host::buffer_type * type = entry.first;
        const std::vector<weight *> & members = entry.second;
        const size_t alignment = host.ggml_backend_buft_get_alignment(type);
        auto padded = [&](const weight * w) {
            return (host.ggml_backend_buft_get_alloc_size(type, &w->described) + alignment - 1) / alignment * alignment;
        };
        size_t total = 0;
        for (const weight * w : members) total += padded(w);
        host::buffer * buffer = host.ggml_backend_buft_alloc_buffer(type, total);
        if (buffer == nullptr) {
            ALLOY_ERROR("no memory for %zu MiB of weights in the host's %s layout", total >> 20, host.ggml_backend_buft_name(type));
            return false;
        }
        buffer->usage = host::usage_weights;
        shadow_buffers_.push_back(buffer);
        auto * next = static_cast<char *>(host.ggml_backend_buffer_get_base(buffer));
        os::advise_huge(next, total); // memory of the host's, but nobody has touched it yet
        for (weight * w : members) {
            w->shadow = w->described;
            w->shadow.buffer = nullptr;
            w->shadow.data = nullptr;
            w->shadow.extra = nullptr;
            if (host.ggml_backend_tensor_alloc(buffer, &w->shadow, next) != host::status_success) return false;
            next += padded(w);
        }
    }
    return true;
}

weight * weight_set::find(uintptr_t address) {
    auto after = std::upper_bound(weights_.begin(), weights_.end(), address, [](uintptr_t a, const auto & w) { return a < w->address; });
    if (after == weights_.begin()) return nullptr;
    weight * w = std::prev(after)->get();
    return address < w->address + std::max<size_t>(w->bytes, 1) ? w : nullptr;
}

bool weight_set::write(weight & w, const void * data, size_t offset, size_t bytes) {
    std::lock_guard lock(moving_);
    const bool whole = offset == 0 && bytes == w.bytes;
    switch (w.where) {
        case layout::shadow:
            if (whole) {
                host::api().ggml_backend_tensor_set(&w.shadow, data, 0, bytes);
                w.written = true;
                return true;
            }
            if (!unpack(w)) return false;
            break;
        case layout::file:
            if (whole && keep_in_file(w, data)) return true;
            if (!commit_plain(w)) return false;
            break;
        case layout::packed: write_packed(w, static_cast<const uint8_t *>(data), offset, bytes); return true;
        case layout::plain: break;
    }
    std::memcpy(reinterpret_cast<void *>(w.address + offset), data, bytes);
    // Plans made before the weight became plain go on reading its shadow.
    if (w.shadow.buffer != nullptr && w.written) {
        host::api().ggml_backend_tensor_set(&w.shadow, reinterpret_cast<const void *>(w.address), 0, w.bytes);
    }
    return true;
}

// With mmap the loader hands over pointers into its mapping of the model file; a mapping of our own outlives the loader's and costs no
// memory that the system cannot take back. The tensor then points there: views and nodes made later follow its `data`.
bool weight_set::keep_in_file(weight & w, const void * data) {
    const os::file_view view = os::map_same_file(data, w.bytes);
    if (view.base == nullptr) return false;
    file_views_.emplace_back(view.base, view.bytes);
    w.address = reinterpret_cast<uintptr_t>(view.data);
    w.handle->data = const_cast<void *>(view.data);
    w.written = true;
    count(counter::file_bytes, w.bytes);
    std::sort(weights_.begin(), weights_.end(), [](const auto & a, const auto & b) { return a->address < b->address; });
    return true;
}

bool weight_set::read(weight & w, void * data, size_t offset, size_t bytes) {
    std::lock_guard lock(moving_);
    if (w.where == layout::packed) {
        read_packed(w, static_cast<uint8_t *>(data), offset, bytes);
        return true;
    }
    if (w.where == layout::shadow && !unpack(w)) return false;
    if (w.where == layout::file && !w.written && !commit_plain(w)) return false;
    std::memcpy(data, reinterpret_cast<const void *>(w.address + offset), bytes);
    return true;
}

bool weight_set::fill(uint8_t value) {
    bool good = true;
    for (const auto & w : weights_) {
        const std::vector<uint8_t> same(w->bytes, value);
        good = write(*w, same.data(), 0, w->bytes) && good;
    }
    return good;
}

// Whole rows are packed as they come; of a row that is touched in part, the rest is read back first.
void weight_set::write_packed(weight & w, const uint8_t * data, size_t offset, size_t bytes) {
    const size_t row_bytes = w.described.nb[1], first = offset / row_bytes, last = (offset + bytes + row_bytes - 1) / row_bytes;
    if (offset % row_bytes != 0 || bytes % row_bytes != 0) {
        std::vector<uint8_t> rows((last - first) * row_bytes);
        read_packed(w, rows.data(), first * row_bytes, rows.size());
        std::memcpy(rows.data() + (offset - first * row_bytes), data, bytes);
        return write_packed(w, rows.data(), first * row_bytes, rows.size());
    }
    if (w.plain_rows != nullptr) std::memcpy(static_cast<char *>(w.plain_rows) + offset, data, bytes);
    row_move{w, const_cast<uint8_t *>(data), static_cast<int64_t>(first), static_cast<int64_t>(last), true}.run();
}

void weight_set::read_packed(const weight & w, uint8_t * data, size_t offset, size_t bytes) {
    const size_t row_bytes = w.described.nb[1], first = offset / row_bytes, last = (offset + bytes + row_bytes - 1) / row_bytes;
    if (offset % row_bytes != 0 || bytes % row_bytes != 0) {
        std::vector<uint8_t> rows((last - first) * row_bytes);
        read_packed(w, rows.data(), first * row_bytes, rows.size());
        std::memcpy(data, rows.data() + (offset - first * row_bytes), bytes);
        return;
    }
    row_move{w, data, static_cast<int64_t>(first), static_cast<int64_t>(last), false}.run();
}

const void * weight_set::plain_rows(weight & w) {
    std::lock_guard lock(moving_);
    if (w.where != layout::packed) return reinterpret_cast<const void *>(w.address);
    if (w.plain_rows == nullptr) {
        void * rows = os::allocate(w.bytes);
        if (rows == nullptr) {
            ALLOY_ERROR("%s: no memory for %zu MiB of plain rows", w.described.name, w.bytes >> 20);
            return nullptr;
        }
        read_packed(w, static_cast<uint8_t *>(rows), 0, w.bytes);
        w.plain_rows = rows;
        count(counter::unpacked_weights);
        ALLOY_WARN("%s: used other than as a matrix; a copy as plain rows serves that (slower, %zu MiB more)", w.described.name, w.bytes >> 20);
    }
    return w.plain_rows;
}

bool weight_set::commit_plain(weight & w) {
    if (!os::commit(reinterpret_cast<void *>(w.address), w.bytes)) {
        ALLOY_ERROR("%s: no memory for %zu MiB of plain rows", w.described.name, w.bytes >> 20);
        return false;
    }
    w.where = layout::plain;
    return true;
}

bool weight_set::make_plain(weight & w) {
    std::lock_guard lock(moving_);
    return unpack(w);
}

bool weight_set::unpack(weight & w) {
    if (w.where == layout::plain || w.where == layout::packed) return w.where == layout::plain;
    if (w.where == layout::file) return commit_plain(w);
    if (!commit_plain(w)) return false;
    if (w.written) {
        const shadow_map map(w.shadow.buffer->buft, w.shadow);
        if (!map.valid()) {
            w.where = layout::shadow;
            ALLOY_ERROR("%s: the host's %s layout cannot be read back; GGML_ALLOY_SHADOW=off keeps plain rows", w.described.name,
                        host::api().ggml_backend_buft_name(w.shadow.buffer->buft));
            return false;
        }
        const int64_t blocks = w.described.ne[0] / host::api().ggml_blck_size(w.described.type);
        const size_t matrix = w.described.nb[2];
        for (int64_t i = 0; i < w.described.ne[2] * w.described.ne[3]; i++) {
            const auto * packed = static_cast<const uint8_t *>(w.shadow.data) + static_cast<size_t>(i) * matrix;
            auto * plain = reinterpret_cast<uint8_t *>(w.address) + static_cast<size_t>(i) * matrix;
            for (int64_t row = 0; row < w.described.ne[1]; row += map.rows()) {
                map.unpack_strip(packed, row, blocks, plain + static_cast<size_t>(row) * w.described.nb[1]);
            }
        }
    }
    // The shadow's own pages stay until the buffer goes: plans made before may still read it.
    uncount(counter::shadow_bytes, w.bytes);
    count(counter::unpacked_weights);
    ALLOY_WARN("%s: used other than as a matrix; unpacked to plain rows (slower, %zu MiB more)", w.described.name, w.bytes >> 20);
    return true;
}

} // namespace alloy::weights
