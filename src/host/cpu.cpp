#include "host/cpu.h"

#include "host/symbols.h"

#include <cstring>

namespace alloy::host {
namespace {

// Functions that the CPU registry hands out by name.
struct cpu_procs {
    void (*set_n_threads)(backend *, int) = nullptr;
    void (*set_abort_callback)(backend *, abort_callback, void *) = nullptr;
    buffer_type ** (*get_extra_bufts)(device *) = nullptr;
    feature * (*get_features)(registry *) = nullptr;
    void * (*threadpool_new)(threadpool_params *) = nullptr;
    void (*threadpool_free)(void *) = nullptr;
    void (*set_threadpool)(backend *, void *) = nullptr;
    bool has_openmp = false;
};

template <class F> void find(registry * reg, const char * name, F & function) {
    function = reinterpret_cast<F>(api().ggml_backend_reg_get_proc_address(reg, name));
}

const cpu_procs & procs() {
    static const cpu_procs found = [] {
        cpu_procs p;
        registry * reg = api().ggml_backend_dev_backend_reg(cpu_device());
        find(reg, "ggml_backend_set_n_threads", p.set_n_threads);
        find(reg, "ggml_backend_set_abort_callback", p.set_abort_callback);
        find(reg, "ggml_backend_dev_get_extra_bufts", p.get_extra_bufts);
        find(reg, "ggml_backend_get_features", p.get_features);
        find(reg, "ggml_threadpool_new", p.threadpool_new);
        find(reg, "ggml_threadpool_free", p.threadpool_free);
        find(reg, "ggml_backend_cpu_set_threadpool", p.set_threadpool);
        for (feature * f = p.get_features ? p.get_features(reg) : nullptr; f && f->name; f++) {
            if (std::strcmp(f->name, "OPENMP") == 0) p.has_openmp = true;
        }
        return p;
    }();
    return found;
}

} // namespace

device * cpu_device() {
    static device * found = nullptr; // set once; the host never removes a device
    if (found == nullptr) found = api().ggml_backend_dev_by_type(device_cpu);
    return found;
}

bool cpu_supports(const tensor * node) {
    device * cpu = cpu_device();
    return cpu != nullptr && cpu->iface.supports_op(cpu, node);
}

const std::vector<buffer_type *> & cpu_repack_buffer_types() {
    static const std::vector<buffer_type *> types = [] {
        std::vector<buffer_type *> list;
        if (cpu_device() == nullptr || procs().get_extra_bufts == nullptr) return list;
        for (buffer_type ** next = procs().get_extra_bufts(cpu_device()); next && *next; next++) list.push_back(*next);
        return list;
    }();
    return types;
}

cpu_backend::cpu_backend(backend * raw) : raw_(raw) {}

std::unique_ptr<cpu_backend> cpu_backend::make() {
    if (cpu_device() == nullptr) return nullptr;
    backend * raw = api().ggml_backend_dev_init(cpu_device(), nullptr);
    return raw ? std::unique_ptr<cpu_backend>(new cpu_backend(raw)) : nullptr;
}

cpu_backend::~cpu_backend() {
    api().ggml_backend_free(raw_);
    if (pool_ != nullptr) procs().threadpool_free(pool_);
}

void cpu_backend::set_num_threads(int n) { num_threads_ = n; }

void cpu_backend::set_abort_callback(abort_callback callback, void * user) {
    if (procs().set_abort_callback) procs().set_abort_callback(raw_, callback, user);
}

void cpu_backend::follow_num_threads() {
    if (pool_threads_ == num_threads_ || num_threads_ <= 0) return;
    const cpu_procs & p = procs();
    if (p.set_n_threads) p.set_n_threads(raw_, num_threads_);
    if (!p.has_openmp && p.threadpool_new && p.threadpool_free && p.set_threadpool) {
        threadpool_params params{};
        params.n_threads = num_threads_;
        params.poll = 50; // the host's default
        void * pool = p.threadpool_new(&params);
        p.set_threadpool(raw_, pool);
        if (pool_ != nullptr) p.threadpool_free(pool_);
        pool_ = pool;
    }
    pool_threads_ = num_threads_;
}

int cpu_backend::compute(tensor ** nodes, int n, const graph & order) {
    follow_num_threads();
    graph part = order;
    part.size = n;
    part.n_nodes = n;
    part.n_leafs = 0;
    part.nodes = nodes;
    part.grads = nullptr;
    part.grad_accs = nullptr;
    part.leafs = nullptr;
    part.uid = 0;
    return raw_->iface.graph_compute(raw_, &part);
}

} // namespace alloy::host
