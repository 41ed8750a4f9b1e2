#include "support/host_scene.h"

#include <cstdarg>
#include <cstdlib>
#include <fcntl.h>
#include <limits>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>

namespace alloy::test {
namespace {

std::mutex log_mutex;
std::string kept_log;
bool has_errors;

void keep_log(ggml_log_level level, const char * text, void *) {
    std::lock_guard lock(log_mutex);
    kept_log += text;
    has_errors = has_errors || level == GGML_LOG_LEVEL_ERROR;
}

const counter_block * open_counters(const std::string & folder) {
    const std::string path = folder + "/ggml-alloy-" + std::to_string(getuid()) + "/" + std::to_string(getpid()) + ".counters";
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) return nullptr;
    void * block = mmap(nullptr, sizeof(counter_block), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    return block == MAP_FAILED ? nullptr : static_cast<const counter_block *>(block);
}

constexpr size_t most_nodes = 256;

ggml_context * make_context(size_t more = 0) {
    return ggml_init({.mem_size = ggml_tensor_overhead() * most_nodes + more, .mem_buffer = nullptr, .no_alloc = true});
}

bool has_tensors(ggml_context * context) { return ggml_get_first_tensor(context) != nullptr; }

const char * shape_of(const ggml_tensor * t) {
    static char text[96];
    std::snprintf(text, sizeof(text), "[%lld,%lld,%lld,%lld]", static_cast<long long>(t->ne[0]), static_cast<long long>(t->ne[1]),
                  static_cast<long long>(t->ne[2]), static_cast<long long>(t->ne[3]));
    return text;
}

} // namespace

// --- the device ---------------------------------------------------------------------------------------------------------------------
std::string device::open(const char * host_folder, const std::string & runtime_folder) {
    setenv("XDG_RUNTIME_DIR", runtime_folder.c_str(), 1);
    setenv("OMP_WAIT_POLICY", "passive", 0); // threads of the host and of ours share few cores
    ggml_log_set(keep_log, nullptr);
    ggml_backend_load_all_from_path(host_folder);
    handle = ggml_backend_dev_by_name("ALLOY0");
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (handle == nullptr || cpu == nullptr) return "no ALLOY0, or no CPU device, among the host's devices:\n" + kept_log;
    memory = ggml_backend_dev_buffer_type(handle);
    backend = ggml_backend_dev_init(handle, nullptr);
    host_backend = ggml_backend_dev_init(cpu, nullptr);
    ggml_backend_t backends[] = {backend, host_backend};
    scheduler = ggml_backend_sched_new(backends, nullptr, 2, 512, false, true);
    set_num_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(handle), "ggml_backend_set_n_threads"));
    counters = open_counters(runtime_folder);
    return counters != nullptr && set_num_threads != nullptr ? "" : "the plugin published no counters";
}

device::~device() {
    if (scheduler != nullptr) ggml_backend_sched_free(scheduler);
    for (ggml_backend_t b : {backend, host_backend}) ggml_backend_free(b);
}

void set_threads(const device & d, int num_threads) {
    d.set_num_threads(d.backend, num_threads);
    ggml_backend_reg_t host = ggml_backend_dev_backend_reg(ggml_backend_get_device(d.host_backend));
    reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(host, "ggml_backend_set_n_threads"))(d.host_backend, num_threads);
}

void forget_log() {
    std::lock_guard lock(log_mutex);
    kept_log.clear();
    has_errors = false;
}
const std::string & log_text() { return kept_log; }
bool log_has_errors() { return has_errors; }

// --- a scene ------------------------------------------------------------------------------------------------------------------------
scene::scene(const device & d, uint64_t seed, uint64_t index)
    : dev(d), engine(seed * 0x9E3779B97F4A7C15u + index), index_(index), weights_(make_context()), caches_(make_context()),
      leaves_(make_context()), host_leaves_(make_context()), nodes_(make_context(ggml_graph_overhead_custom(most_nodes, false))),
      graph_(ggml_new_graph_custom(nodes_, most_nodes, false)) {
    way_ = static_cast<way>(pick(0, 2));
    inputs_on_host_ = chance(0.25);
    const int threads = static_cast<int>(pick(1, 3));
    dev.set_num_threads(dev.backend, threads);
    describe("%d threads, %s%s", threads,
             way_ == way::scheduler ? "scheduler" : way_ == way::reused_memory ? "graph allocator" : "memory for each node",
             inputs_on_host_ ? ", inputs in host memory" : "");
}

scene::~scene() {
    if (way_ == way::scheduler) ggml_backend_sched_reset(dev.scheduler);
    if (allocator_ != nullptr) ggml_gallocr_free(allocator_);
    for (ggml_backend_buffer_t buffer : {node_buffer_, host_leaf_buffer_, leaf_buffer_, cache_buffer_, weight_buffer_}) {
        ggml_backend_buffer_free(buffer);
    }
    for (ggml_context * context : {nodes_, host_leaves_, leaves_, caches_, weights_}) ggml_free(context);
}

void scene::describe(const char * format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    std::vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    description += (description.empty() ? "" : "; ") + std::string(text);
}

// --- parts --------------------------------------------------------------------------------------------------------------------------
// As weight_buft_supported of llama-model-loader.cpp: the weight stands in an empty candidate buffer while the device is asked.
bool scene::offer(ggml_tensor * w, ggml_op op) {
    ggml_context * c = make_context();
    ggml_tensor * node = nullptr;
    if (op == GGML_OP_MUL_MAT) {
        node = ggml_mul_mat(c, w, ggml_new_tensor_4d(c, GGML_TYPE_F32, w->ne[0], 512, w->ne[2], w->ne[3]));
    } else if (op == GGML_OP_MUL_MAT_ID) {
        node = ggml_mul_mat_id(c, w, ggml_new_tensor_3d(c, GGML_TYPE_F32, w->ne[0], 2, 512), ggml_new_tensor_2d(c, GGML_TYPE_I32, 2, 512));
    } else if (op == GGML_OP_GET_ROWS) {
        node = ggml_get_rows(c, w, ggml_new_tensor_1d(c, GGML_TYPE_I32, 512));
    } else {
        node = ggml_add(c, ggml_new_tensor_4d(c, GGML_TYPE_F32, w->ne[0], w->ne[1], w->ne[2], w->ne[3]), w);
    }
    w->buffer = ggml_backend_buft_alloc_buffer(dev.memory, 0);
    const bool taken = ggml_backend_dev_supports_op(dev.handle, node);
    ggml_backend_buffer_free(w->buffer);
    w->buffer = nullptr;
    ggml_free(c);
    if (!taken) fail(std::string("the device refused ") + w->name + " for " + ggml_op_name(op));
    return taken;
}

weight & scene::add_weight(const matrix_type & type, int64_t k, int64_t rows, int64_t matrices, int64_t outer, ggml_op offered) {
    ggml_tensor * t = ggml_new_tensor_4d(weights_, type.host_type, k, rows, matrices, outer);
    ggml_set_name(t, name(".weight").c_str());
    offer(t, offered);
    describe("weight %s%s%s", type.name, shape_of(t), offered == GGML_OP_GET_ROWS ? " not offered as a matrix" : "");
    const bool kernel = type.can_pack() && outer == 1 && offered != GGML_OP_GET_ROWS && dev.packs[static_cast<size_t>(type.packed)];
    weight_list_.push_back({type, t, random_rows(type, k, rows * matrices * outer, engine), kernel, {}});
    return weight_list_.back();
}

input & scene::add_bias(int64_t rows) {
    ggml_tensor * t = ggml_new_tensor_1d(weights_, GGML_TYPE_F32, rows);
    ggml_set_name(t, name(".bias").c_str());
    offer(t, GGML_OP_ADD);
    describe("bias [%lld]", static_cast<long long>(rows));
    inputs_.push_back({t, t, numbers(rows, 1, 1, 1), {}, {}});
    for (number & x : inputs_.back().x.v) x = exactly(normal());
    return inputs_.back();
}

input & scene::add_input(int64_t n0, int64_t n1, int64_t n2, int64_t n3, layout how) {
    ggml_tensor *memory, *view;
    if (how == layout::dense) {
        memory = view = ggml_new_tensor_4d(leaves_, GGML_TYPE_F32, n0, n1, n2, n3);
    } else {
        // Any order of the outer dimensions, with gaps.
        const int64_t ne[4] = {n0, n1, n2, n3};
        std::array<int, 3> order{1, 2, 3};
        std::shuffle(order.begin(), order.end(), engine);
        size_t nb[4] = {4}, next = static_cast<size_t>(n0) * 4;
        for (int d : order) {
            nb[d] = next + static_cast<size_t>(pick(0, 5)) * 4;
            next = nb[d] * static_cast<size_t>(ne[d]);
        }
        memory = ggml_new_tensor_1d(leaves_, GGML_TYPE_F32, static_cast<int64_t>(next / 4));
        view = ggml_view_4d(leaves_, memory, n0, n1, n2, n3, nb[1], nb[2], nb[3], 0);
        describe("strides %zu %zu %zu", nb[1], nb[2], nb[3]);
    }
    ggml_set_name(memory, name(".input").c_str());
    ggml_set_input(memory);
    describe("input %s", shape_of(view));
    inputs_.push_back({memory, view, numbers(n0, n1, n2, n3), {}, {}});
    for (number & x : inputs_.back().x.v) x = exactly(normal());
    return inputs_.back();
}

input & scene::add_ids(int64_t n0, int64_t n1, int64_t limit, bool distinct, int64_t gap) {
    ggml_tensor * memory = ggml_new_tensor_2d(leaves_, GGML_TYPE_I32, n0 + gap, n1);
    ggml_set_name(memory, name(".ids").c_str());
    ggml_set_input(memory);
    ggml_tensor * view = gap == 0 ? memory : ggml_view_2d(leaves_, memory, n0, n1, memory->nb[1], 0);
    inputs_.push_back({memory, view, {}, {}, {}});
    std::vector<int32_t> all(static_cast<size_t>(limit));
    for (size_t i = 0; i < all.size(); i++) all[i] = static_cast<int32_t>(i);
    for (int64_t i1 = 0; i1 < n1; i1++) {
        if (distinct) std::shuffle(all.begin(), all.end(), engine);
        for (int64_t i0 = 0; i0 < n0; i0++) {
            inputs_.back().ids.push_back(distinct ? all[static_cast<size_t>(i0)] : static_cast<int32_t>(pick(0, limit - 1)));
        }
    }
    describe("ids [%lld,%lld] below %lld%s%s", static_cast<long long>(n0), static_cast<long long>(n1), static_cast<long long>(limit),
             distinct ? ", distinct" : "", gap ? ", with gaps" : "");
    return inputs_.back();
}

input & scene::add_host_bytes(ggml_type type, int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
    ggml_tensor * t = ggml_new_tensor_4d(host_leaves_, type, n0, n1, n2, n3);
    ggml_set_name(t, name(".bytes").c_str());
    ggml_set_input(t);
    inputs_.push_back({t, t, {}, {}, std::vector<uint8_t>(ggml_nbytes(t))});
    return inputs_.back();
}

// --- operators ----------------------------------------------------------------------------------------------------------------------
node scene::mul_mat(weight & w, ggml_tensor * rows, int64_t first, const node & x, computed_by who) {
    ggml_tensor * t = ggml_mul_mat(nodes_, rows, x.tensor);
    note(GGML_OP_MUL_MAT, who);
    describe("%s = %s x %s", shape_of(t), w.type.name, x.tensor->name);
    const int64_t num_rows = rows->ne[1], matrices = rows->ne[2], outer = rows->ne[3];
    return {t, [&w, first, num_rows, matrices, outer, x, who] {
                const numbers in = x.want();
                const matrix & m = w.decoded();
                numbers out(num_rows, in.ne[1], in.ne[2], in.ne[3]);
                for (int64_t i3 = 0; i3 < in.ne[3]; i3++)
                    for (int64_t i2 = 0; i2 < in.ne[2]; i2++)
                        for (int64_t i1 = 0; i1 < in.ne[1]; i1++) {
                            const int64_t matrix = i3 / (in.ne[3] / outer) * matrices + i2 / (in.ne[2] / matrices);
                            multiply(w.type, m, w.k(), matrix * w.rows() + first, num_rows, in.row(i1, i2, i3), who, out.row(i1, i2, i3));
                        }
                return out;
            }};
}

node scene::mul_mat_id(weight & w, const node & x, ggml_tensor * ids, std::function<std::vector<int32_t>()> chosen) {
    ggml_tensor * t = ggml_mul_mat_id(nodes_, w.tensor, x.tensor, ids);
    const int64_t used = ids->ne[0], tokens = ids->ne[1], slots = x.tensor->ne[1];
    // Inputs of some slots that serve several are the host's.
    const computed_by who = w.kernel && (slots == 1 || slots == used) ? computed_by::kernel : computed_by::host;
    note(GGML_OP_MUL_MAT_ID, who);
    describe("%s = %s x by expert", shape_of(t), w.type.name);
    return {t, [&w, used, tokens, slots, x, who, chosen = std::move(chosen)] {
                const numbers in = x.want();
                const std::vector<int32_t> expert = chosen();
                numbers out(w.rows(), used, tokens, 1);
                for (int64_t token = 0; token < tokens; token++)
                    for (int64_t slot = 0; slot < used; slot++) {
                        multiply(w.type, w.decoded(), w.k(), expert[static_cast<size_t>(token * used + slot)] * w.rows(), w.rows(),
                                 in.row(slot % slots, token, 0), who, out.row(slot, token, 0));
                    }
                return out;
            }};
}

node scene::get_rows(weight & w, input & ids) {
    ggml_tensor * t = ggml_get_rows(nodes_, w.tensor, ids.view);
    describe("rows of %s", w.type.name);
    return {t, [&w, &ids] {
                const matrix & m = w.decoded();
                numbers out(w.k(), static_cast<int64_t>(ids.ids.size()), 1, 1);
                for (size_t r = 0; r < ids.ids.size(); r++)
                    for (int64_t i = 0; i < w.k(); i++) {
                        const auto at = static_cast<size_t>(ids.ids[r] * w.k() + i);
                        out.row(static_cast<int64_t>(r), 0, 0)[i] = {m.value[at], 8 * half_ulp * m.size[at] + 1e-40, finiteness::finite};
                    }
                return out;
            }};
}

node scene::add(ggml_tensor * sum, const node & a, const node & b) {
    describe("%s %s", sum->view_src ? "add in place" : "add", shape_of(sum));
    return {sum, [a, b] {
                numbers out = a.want();
                const numbers term = b.want();
                for (int64_t i3 = 0; i3 < out.ne[3]; i3++)
                    for (int64_t i2 = 0; i2 < out.ne[2]; i2++)
                        for (int64_t i1 = 0; i1 < out.ne[1]; i1++)
                            for (int64_t i0 = 0; i0 < out.ne[0]; i0++) {
                                number & x = out.row(i1, i2, i3)[i0];
                                x = sum_of(x, term.row(i1 % term.ne[1], i2 % term.ne[2], i3 % term.ne[3])[i0]);
                            }
                return out;
            }};
}

node scene::as_computed(const node & n) {
    ggml_set_output(n.tensor);
    return {n.tensor, [this, t = n.tensor] {
                const std::vector<uint8_t> bytes = bytes_of(t);
                numbers out(t->ne[0], t->ne[1], t->ne[2], t->ne[3]);
                for_each_row(t, [&](int64_t i1, int64_t i2, int64_t i3, size_t at) {
                    for (int64_t i = 0; i < t->ne[0]; i++) {
                        float x;
                        std::memcpy(&x, bytes.data() + at + static_cast<size_t>(i) * 4, 4);
                        out.row(i1, i2, i3)[i] = exactly(x);
                    }
                });
                return out;
            }};
}

void scene::step(const node & n) { ggml_build_forward_expand(graph_, n.tensor); }

void scene::note(ggml_op op, computed_by who) {
    on_host_[op] += who == computed_by::host;
    on_kernel_ += who == computed_by::kernel;
}

void scene::expect(const node & n) {
    ggml_set_output(n.tensor);
    step(n);
    outputs_.push_back(n);
}

// --- life ---------------------------------------------------------------------------------------------------------------------------
void scene::place() {
    placed_ = true;
    if (has_tensors(weights_)) {
        weight_buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(weights_, dev.memory);
        if (weight_buffer_ == nullptr) return fail("no buffer for the weights");
        ggml_backend_buffer_set_usage(weight_buffer_, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        for (weight & w : weight_list_) ggml_backend_tensor_set(w.tensor, w.bytes.data(), 0, w.bytes.size());
    }
    if (!has_tensors(caches_)) return;
    cache_buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(caches_, dev.memory);
    if (cache_buffer_ == nullptr) return fail("no buffer for the caches");
    ggml_backend_buffer_clear(cache_buffer_, 0);
}

void scene::write(weight & w, const std::vector<uint8_t> & other, size_t offset, size_t bytes) {
    describe("write %s [%zu, +%zu)", w.type.name, offset, bytes);
    ggml_backend_tensor_set(w.tensor, other.data() + offset, offset, bytes);
    std::memcpy(w.bytes.data() + offset, other.data() + offset, bytes);
    w.worth = {};
}

void scene::fill(weight & w, uint8_t value, size_t offset, size_t bytes) {
    describe("memset %s [%zu, +%zu) to %d", w.type.name, offset, bytes, value);
    ggml_backend_tensor_memset(w.tensor, value, offset, bytes);
    std::memset(w.bytes.data() + offset, value, bytes);
    w.worth = {};
}

void scene::expect_bytes(weight & w, size_t offset, size_t bytes) {
    std::vector<uint8_t> got(bytes + 2, 0xA5); // one more at either side
    ggml_backend_tensor_get(w.tensor, got.data() + 1, offset, bytes);
    for (size_t i = 0; i < bytes; i++) {
        if (got[i + 1] == w.bytes[offset + i]) continue;
        return fail("byte " + std::to_string(offset + i) + " of " + w.type.name + ", read from [" + std::to_string(offset) + ", +" +
                    std::to_string(bytes) + "), is " + std::to_string(got[i + 1]) + ", expected " + std::to_string(w.bytes[offset + i]));
    }
    if (got.front() != 0xA5 || got.back() != 0xA5) fail("a read of " + std::string(w.type.name) + " wrote beyond its range");
}

void scene::allocate_graph() {
    allocated_ = true;
    ggml_backend_buffer_type_t host_memory = ggml_backend_cpu_buffer_type();
    if (has_tensors(host_leaves_)) host_leaf_buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(host_leaves_, host_memory);
    leaf_buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(leaves_, inputs_on_host_ ? host_memory : dev.memory);
    bool good = true;
    if (way_ == way::scheduler) {
        ggml_backend_sched_reset(dev.scheduler);
        good = ggml_backend_sched_alloc_graph(dev.scheduler, graph_);
    } else if (way_ == way::reused_memory) {
        allocator_ = ggml_gallocr_new(dev.memory);
        good = ggml_gallocr_alloc_graph(allocator_, graph_);
    } else {
        node_buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(nodes_, dev.memory);
    }
    if (!good) fail("no memory for the graph");
}

// Inputs are written before each run: the graph may have used their memory.
void scene::upload() {
    for (const input & in : inputs_) {
        if (!in.bytes.empty()) {
            ggml_backend_tensor_set(in.memory, in.bytes.data(), 0, in.bytes.size());
            continue;
        }
        std::vector<uint8_t> image(ggml_nbytes(in.memory));
        const float gap = std::numeric_limits<float>::quiet_NaN();
        for (size_t at = 0; at < image.size(); at += 4) std::memcpy(image.data() + at, &gap, 4);
        size_t id = 0;
        for_each_row(in.view, [&](int64_t i1, int64_t i2, int64_t i3, size_t at) {
            for (int64_t i = 0; i < in.view->ne[0]; i++, at += 4) {
                if (in.ids.empty()) {
                    const auto x = static_cast<float>(in.x.row(i1, i2, i3)[i].value);
                    std::memcpy(image.data() + at, &x, 4);
                } else {
                    std::memcpy(image.data() + at, &in.ids[id++], 4);
                }
            }
        });
        ggml_backend_tensor_set(in.memory, image.data(), 0, image.size());
    }
}

void scene::run() {
    if (!placed_) place();
    if (problem.empty() && !allocated_) allocate_graph();
    if (!problem.empty()) return;
    upload();
    std::map<ggml_op, uint64_t> before;
    for (const auto & [op, nodes] : on_host_) before[op] = dev.delegated(op);
    const uint64_t steps = dev.count_of(counter::kernel_steps);
    const ggml_status status = way_ == way::scheduler ? ggml_backend_sched_graph_compute(dev.scheduler, graph_)
                                                      : ggml_backend_graph_compute(dev.backend, graph_);
    if (status != GGML_STATUS_SUCCESS) return fail("the graph returned " + std::to_string(status));
    for (const auto & [op, nodes] : on_host_) {
        const uint64_t delegated = dev.delegated(op) - before[op];
        if (delegated == nodes) continue;
        fail("delegated " + std::to_string(delegated) + " " + ggml_op_name(op) + ", expected " + std::to_string(nodes));
    }
    if (dev.count_of(counter::kernel_steps) - steps < on_kernel_) fail("fewer kernel steps than nodes that kernels run");
    for (const node & n : outputs_) {
        // What is written into host memory may be the host's.
        if (way_ == way::scheduler && n.tensor->view_src == nullptr &&
            ggml_backend_sched_get_tensor_backend(dev.scheduler, n.tensor) != dev.backend) {
            fail(std::string("the scheduler gave ") + ggml_op_desc(n.tensor) + " to another backend");
        }
        compare(n);
    }
}

std::vector<uint8_t> scene::bytes_of(const ggml_tensor * t) const {
    std::vector<uint8_t> bytes(ggml_nbytes(t));
    ggml_backend_tensor_get(t, bytes.data(), 0, bytes.size());
    return bytes;
}

void scene::compare(const node & n) {
    const numbers want = n.want();
    const std::vector<uint8_t> bytes = bytes_of(n.tensor);
    double squares = 0;
    for_each_row(n.tensor, [&](int64_t i1, int64_t i2, int64_t i3, size_t at) {
        for (int64_t i = 0; i < n.tensor->ne[0] && problem.empty(); i++) {
            float got;
            std::memcpy(&got, bytes.data() + at + static_cast<size_t>(i) * 4, 4);
            const number & expected = want.row(i1, i2, i3)[i];
            if (expected.kind == finiteness::finite && expected.bound > 0) squares += std::pow((got - expected.value) / expected.bound, 2);
            if (expected.accepts(got)) continue;
            char text[256];
            std::snprintf(text, sizeof(text), "output %d, %s%s: element (%lld,%lld,%lld,%lld) is %.9g, expected %.9g within %.3g",
                          static_cast<int>(&n - outputs_.data()), ggml_op_desc(n.tensor), shape_of(n.tensor), static_cast<long long>(i),
                          static_cast<long long>(i1), static_cast<long long>(i2), static_cast<long long>(i3), static_cast<double>(got),
                          expected.value, expected.bound);
            fail(text);
        }
    });
    const double rms = std::sqrt(squares / static_cast<double>(want.v.size()));
    if (rms <= want.rms) return;
    fail(std::string(ggml_op_desc(n.tensor)) + shape_of(n.tensor) + ": deviations / bounds have an rms of " + std::to_string(rms));
}

} // namespace alloy::test
