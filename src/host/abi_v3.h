// The host's structs as of backend API version 3 (ggml 0.26), written from its documentation and checked by tests/abi_test.cpp,
// which compiles these mirrors against the real headers and compares every size, offset and value. Nothing of ggml is included.
#pragma once
#include <cstddef>
#include <cstdint>

namespace alloy::host {

inline constexpr int api_version = 3;
inline constexpr int max_dims = 4;
inline constexpr int max_src = 10;
inline constexpr int op_count = 101;
inline constexpr size_t object_bytes = 32; // ggml_object, the header of each tensor in a context

// --- enumerations (only the values used) --------------------------------------------------------

enum status : int { status_alloc_failed = -2, status_failed = -1, status_success = 0, status_aborted = 1 };
enum log_level : int { log_debug = 1, log_info = 2, log_warn = 3, log_error = 4 };
enum device_type : int { device_cpu = 0, device_gpu = 1, device_igpu = 2, device_accel = 3 };
enum buffer_usage : int { usage_any = 0, usage_weights = 1, usage_compute = 2 };
enum tensor_flag : int32_t { flag_input = 1, flag_output = 2, flag_compute = 16 };
enum glu_op : int32_t { glu_geglu = 1, glu_swiglu = 2 };
enum unary_op : int32_t { unary_step = 3, unary_exp = 13 };
enum sort_order : int32_t { sort_ascending = 0, sort_descending = 1 };
enum rope_mode : int32_t { rope_normal = 0, rope_neox = 2 };
enum mul_mat_hint : int32_t { hint_src0_is_hadamard = 1 };

enum tensor_type : int {
    type_f32 = 0,
    type_f16 = 1,
    type_i32 = 26,
    type_i64 = 27,
    type_bf16 = 30,
};

// --- tensors and graphs -------------------------------------------------------------------------

struct buffer;
struct device;
struct registry;

struct tensor {
    int type;
    host::buffer * buffer;
    int64_t ne[max_dims]; // elements
    size_t nb[max_dims];  // strides, bytes
    int op;               // number of the running host: compare through op_of() (host/ops.h)
    int32_t op_params[16];
    int32_t flags;
    tensor * src[max_src];
    tensor * view_src;
    size_t view_offs;
    void * data;
    char name[64];
    void * extra;
    char padding[8];
};
static_assert(sizeof(tensor) == 336);

struct hash_set {
    size_t size;
    uint32_t * used;
    tensor ** keys;
};

struct graph {
    int size;
    int n_nodes;
    int n_leafs;
    tensor ** nodes;
    tensor ** grads;
    tensor ** grad_accs;
    tensor ** leafs;
    int32_t * use_counts; // indexed by slot of visited
    hash_set visited;
    int order;
    uint64_t uid; // 0: do not cache
};
static_assert(sizeof(graph) == 96);

// Parameters of a CUSTOM node: the host's threads call `run(node, thread, num_threads, user)`.
struct custom_params {
    void (*run)(tensor * node, int thread, int num_threads, void * user);
    int n_tasks; // -1: all threads
    void * user;
};
static_assert(sizeof(custom_params) <= sizeof(tensor::op_params));

// Parameters of the host's thread pool.
struct threadpool_params {
    bool cpumask[512];
    int n_threads;
    int prio;
    uint32_t poll;
    bool strict_cpu;
    bool paused;
};

// --- buffers ------------------------------------------------------------------------------------

struct buffer_type;

struct buffer_type_table {
    const char * (*get_name)(buffer_type *);
    buffer * (*alloc_buffer)(buffer_type *, size_t bytes);
    buffer * (*alloc_buffer_n)(buffer_type *, tensor ** tensors, int n);
    size_t (*get_alignment)(buffer_type *);
    size_t (*get_max_size)(buffer_type *);
    size_t (*get_alloc_size)(buffer_type *, const tensor *);
    size_t (*get_alloc_size_n)(buffer_type *, tensor ** tensors, int n);
    bool (*is_host)(buffer_type *);
};
static_assert(sizeof(buffer_type_table) == 64);

struct buffer_type {
    buffer_type_table iface;
    host::device * device;
    void * context;
};

struct buffer_table {
    void (*free_buffer)(buffer *);
    void * (*get_base)(buffer *);
    int (*init_tensor)(buffer *, tensor *);
    void (*memset_tensor)(buffer *, tensor *, uint8_t value, size_t offset, size_t bytes);
    void (*set_tensor)(buffer *, tensor *, const void * data, size_t offset, size_t bytes);
    void (*get_tensor)(buffer *, const tensor *, void * data, size_t offset, size_t bytes);
    void (*set_tensor_2d)(buffer *, tensor *, const void *, size_t, size_t, size_t, size_t, size_t);
    void (*get_tensor_2d)(buffer *, const tensor *, void *, size_t, size_t, size_t, size_t, size_t);
    bool (*cpy_tensor)(buffer *, const tensor * src, tensor * dst);
    void (*clear)(buffer *, uint8_t value);
    void (*reset)(buffer *);
};
static_assert(sizeof(buffer_table) == 88);

struct buffer {
    buffer_table iface;
    buffer_type * buft;
    void * context;
    size_t size;
    int usage;
};

// --- backends, devices, registries ---------------------------------------------------------------

struct backend;

struct optimize_params {
    void (*add_alloc_dep)(void * user, tensor * t, tensor * until);
    void * user;
};

struct backend_table {
    const char * (*get_name)(backend *);
    void (*free)(backend *);
    void (*set_tensor_async)(backend *, tensor *, const void *, size_t, size_t);
    void (*get_tensor_async)(backend *, const tensor *, void *, size_t, size_t);
    void (*set_tensor_2d_async)(backend *, tensor *, const void *, size_t, size_t, size_t, size_t, size_t);
    void (*get_tensor_2d_async)(backend *, const tensor *, void *, size_t, size_t, size_t, size_t, size_t);
    bool (*cpy_tensor_async)(backend *, backend *, const tensor *, tensor *);
    void (*synchronize)(backend *);
    void * (*graph_plan_create)(backend *, const graph *);
    void (*graph_plan_free)(backend *, void *);
    void (*graph_plan_update)(backend *, void *, const graph *);
    int (*graph_plan_compute)(backend *, void *);
    int (*graph_compute)(backend *, graph *);
    void (*event_record)(backend *, void * event);
    void (*event_wait)(backend *, void * event);
    void (*graph_optimize)(backend *, graph *, optimize_params *);
};
static_assert(sizeof(backend_table) == 128);

struct backend {
    const uint8_t * guid; // 16 bytes
    backend_table iface;
    host::device * device;
    void * context;
};

struct device_caps {
    bool async, host_buffer, buffer_from_host_ptr, events, mmap_support;
};

struct device_props {
    const char * name;
    const char * description;
    size_t memory_free;
    size_t memory_total;
    int type;
    const char * device_id;
    device_caps caps;
};
static_assert(sizeof(device_props) == 56);

struct device_table {
    const char * (*get_name)(device *);
    const char * (*get_description)(device *);
    void (*get_memory)(device *, size_t * free, size_t * total);
    int (*get_type)(device *);
    void (*get_props)(device *, device_props *);
    backend * (*init_backend)(device *, const char * params);
    buffer_type * (*get_buffer_type)(device *);
    buffer_type * (*get_host_buffer_type)(device *);
    buffer * (*buffer_from_host_ptr)(device *, void *, size_t, size_t);
    bool (*supports_op)(device *, const tensor *);
    bool (*supports_buft)(device *, buffer_type *);
    bool (*offload_op)(device *, const tensor *);
    void * (*event_new)(device *);
    void (*event_free)(device *, void *);
    void (*event_synchronize)(device *, void *);
};
static_assert(sizeof(device_table) == 120);

struct device {
    device_table iface;
    registry * reg;
    void * context;
};

struct registry_table {
    const char * (*get_name)(registry *);
    size_t (*get_device_count)(registry *);
    device * (*get_device)(registry *, size_t index);
    void * (*get_proc_address)(registry *, const char * name);
};

struct registry {
    int api_version;
    registry_table iface;
    void * context;
};
static_assert(sizeof(registry) == 48);

struct feature {
    const char * name;
    const char * value;
};

} // namespace alloy::host
