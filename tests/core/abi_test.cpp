// Compares every mirrored struct of host/abi_v3.h with the real headers: sizes, offsets of each field, values of each constant.
#include "base/counters.h"
#include "host/abi_v3.h"

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-impl.h"
#include "ggml.h"

#include <gtest/gtest.h>

#define SIZE(ours, theirs) EXPECT_EQ(sizeof(alloy::host::ours), sizeof(theirs)) << #theirs
#define FIELD(ours, field, theirs, their_field)                                            \
    EXPECT_EQ(offsetof(alloy::host::ours, field), offsetof(theirs, their_field)) << #theirs "." #their_field; \
    EXPECT_EQ(sizeof(alloy::host::ours::field), sizeof(theirs::their_field)) << #theirs "." #their_field
#define SAME(ours, theirs, field) FIELD(ours, field, theirs, field)

TEST(Abi, TensorAndGraph) {
    EXPECT_EQ(alloy::host::api_version, GGML_BACKEND_API_VERSION);
    EXPECT_EQ(alloy::host::max_dims, GGML_MAX_DIMS);
    EXPECT_EQ(alloy::host::max_src, GGML_MAX_SRC);
    SIZE(tensor, ggml_tensor);
    SAME(tensor, ggml_tensor, type);
    SAME(tensor, ggml_tensor, buffer);
    SAME(tensor, ggml_tensor, ne);
    SAME(tensor, ggml_tensor, nb);
    SAME(tensor, ggml_tensor, op);
    SAME(tensor, ggml_tensor, op_params);
    SAME(tensor, ggml_tensor, flags);
    SAME(tensor, ggml_tensor, src);
    SAME(tensor, ggml_tensor, view_src);
    SAME(tensor, ggml_tensor, view_offs);
    SAME(tensor, ggml_tensor, data);
    SAME(tensor, ggml_tensor, name);
    SAME(tensor, ggml_tensor, extra);
    SIZE(hash_set, ggml_hash_set);
    SAME(hash_set, ggml_hash_set, size);
    SAME(hash_set, ggml_hash_set, used);
    SAME(hash_set, ggml_hash_set, keys);
    SIZE(graph, ggml_cgraph);
    SAME(graph, ggml_cgraph, size);
    SAME(graph, ggml_cgraph, n_nodes);
    SAME(graph, ggml_cgraph, n_leafs);
    SAME(graph, ggml_cgraph, nodes);
    SAME(graph, ggml_cgraph, grads);
    SAME(graph, ggml_cgraph, grad_accs);
    SAME(graph, ggml_cgraph, leafs);
    SAME(graph, ggml_cgraph, use_counts);
    FIELD(graph, visited, ggml_cgraph, visited_hash_set);
    SAME(graph, ggml_cgraph, order);
    SAME(graph, ggml_cgraph, uid);
    SIZE(custom_params, ggml_custom_op_params);
    FIELD(custom_params, run, ggml_custom_op_params, fun);
    SAME(custom_params, ggml_custom_op_params, n_tasks);
    FIELD(custom_params, user, ggml_custom_op_params, userdata);
    EXPECT_EQ(-1, GGML_N_TASKS_MAX);
    SIZE(threadpool_params, ggml_threadpool_params);
    SAME(threadpool_params, ggml_threadpool_params, cpumask);
    SAME(threadpool_params, ggml_threadpool_params, n_threads);
    SAME(threadpool_params, ggml_threadpool_params, prio);
    SAME(threadpool_params, ggml_threadpool_params, poll);
    SAME(threadpool_params, ggml_threadpool_params, strict_cpu);
    SAME(threadpool_params, ggml_threadpool_params, paused);
}

TEST(Abi, HashOfTensorsIsTheAddress) {
    alignas(16) ggml_tensor t{};
    EXPECT_EQ(ggml_hash(&t), reinterpret_cast<uintptr_t>(&t) >> 4); // what use_count() in the planner computes
    ggml_bitset_t bits[4] = {};
    ggml_bitset_set(bits, 70);
    EXPECT_EQ(bits[70 >> 5], 1u << (70 & 31));
}

TEST(Abi, BuffersAndTypes) {
    SIZE(buffer_type_table, ggml_backend_buffer_type_i);
    SAME(buffer_type_table, ggml_backend_buffer_type_i, get_name);
    SAME(buffer_type_table, ggml_backend_buffer_type_i, alloc_buffer);
    SAME(buffer_type_table, ggml_backend_buffer_type_i, alloc_buffer_n);
    SAME(buffer_type_table, ggml_backend_buffer_type_i, get_alignment);
    SAME(buffer_type_table, ggml_backend_buffer_type_i, get_max_size);
    SAME(buffer_type_table, ggml_backend_buffer_type_i, get_alloc_size);
    SAME(buffer_type_table, ggml_backend_buffer_type_i, get_alloc_size_n);
    SAME(buffer_type_table, ggml_backend_buffer_type_i, is_host);
    SIZE(buffer_type, ggml_backend_buffer_type);
    SAME(buffer_type, ggml_backend_buffer_type, iface);
    SAME(buffer_type, ggml_backend_buffer_type, device);
    SAME(buffer_type, ggml_backend_buffer_type, context);
    SIZE(buffer_table, ggml_backend_buffer_i);
    SAME(buffer_table, ggml_backend_buffer_i, free_buffer);
    SAME(buffer_table, ggml_backend_buffer_i, get_base);
    SAME(buffer_table, ggml_backend_buffer_i, init_tensor);
    SAME(buffer_table, ggml_backend_buffer_i, memset_tensor);
    SAME(buffer_table, ggml_backend_buffer_i, set_tensor);
    SAME(buffer_table, ggml_backend_buffer_i, get_tensor);
    SAME(buffer_table, ggml_backend_buffer_i, set_tensor_2d);
    SAME(buffer_table, ggml_backend_buffer_i, get_tensor_2d);
    SAME(buffer_table, ggml_backend_buffer_i, cpy_tensor);
    SAME(buffer_table, ggml_backend_buffer_i, clear);
    SAME(buffer_table, ggml_backend_buffer_i, reset);
    SIZE(buffer, ggml_backend_buffer);
    SAME(buffer, ggml_backend_buffer, iface);
    SAME(buffer, ggml_backend_buffer, buft);
    SAME(buffer, ggml_backend_buffer, context);
    SAME(buffer, ggml_backend_buffer, size);
    SAME(buffer, ggml_backend_buffer, usage);
}

TEST(Abi, BackendsDevicesRegistries) {
    SIZE(backend_table, ggml_backend_i);
    SAME(backend_table, ggml_backend_i, get_name);
    SAME(backend_table, ggml_backend_i, free);
    SAME(backend_table, ggml_backend_i, synchronize);
    SAME(backend_table, ggml_backend_i, graph_compute);
    SAME(backend_table, ggml_backend_i, event_record);
    SAME(backend_table, ggml_backend_i, graph_optimize);
    SIZE(optimize_params, ggml_backend_graph_optimize_params);
    SAME(optimize_params, ggml_backend_graph_optimize_params, add_alloc_dep);
    FIELD(optimize_params, user, ggml_backend_graph_optimize_params, user_data);
    SIZE(backend, ggml_backend);
    SAME(backend, ggml_backend, guid);
    SAME(backend, ggml_backend, iface);
    SAME(backend, ggml_backend, device);
    SAME(backend, ggml_backend, context);
    SIZE(device_caps, ggml_backend_dev_caps);
    SAME(device_caps, ggml_backend_dev_caps, mmap_support);
    SIZE(device_props, ggml_backend_dev_props);
    SAME(device_props, ggml_backend_dev_props, name);
    SAME(device_props, ggml_backend_dev_props, description);
    SAME(device_props, ggml_backend_dev_props, memory_free);
    SAME(device_props, ggml_backend_dev_props, memory_total);
    SAME(device_props, ggml_backend_dev_props, type);
    SAME(device_props, ggml_backend_dev_props, device_id);
    SAME(device_props, ggml_backend_dev_props, caps);
    SIZE(device_table, ggml_backend_device_i);
    SAME(device_table, ggml_backend_device_i, get_name);
    SAME(device_table, ggml_backend_device_i, get_memory);
    SAME(device_table, ggml_backend_device_i, get_type);
    SAME(device_table, ggml_backend_device_i, get_props);
    SAME(device_table, ggml_backend_device_i, init_backend);
    SAME(device_table, ggml_backend_device_i, get_buffer_type);
    SAME(device_table, ggml_backend_device_i, get_host_buffer_type);
    SAME(device_table, ggml_backend_device_i, buffer_from_host_ptr);
    SAME(device_table, ggml_backend_device_i, supports_op);
    SAME(device_table, ggml_backend_device_i, supports_buft);
    SAME(device_table, ggml_backend_device_i, offload_op);
    SAME(device_table, ggml_backend_device_i, event_synchronize);
    SIZE(device, ggml_backend_device);
    SAME(device, ggml_backend_device, iface);
    SAME(device, ggml_backend_device, reg);
    SIZE(registry, ggml_backend_reg);
    SAME(registry, ggml_backend_reg, api_version);
    SAME(registry, ggml_backend_reg, iface);
    SAME(registry, ggml_backend_reg, context);
    SIZE(registry_table, ggml_backend_reg_i);
    SAME(registry_table, ggml_backend_reg_i, get_proc_address);
    SIZE(feature, ggml_backend_feature);
    SAME(feature, ggml_backend_feature, name);
    SAME(feature, ggml_backend_feature, value);
}

TEST(Abi, Constants) {
    using namespace alloy::host;
    EXPECT_EQ(int{status_alloc_failed}, int{GGML_STATUS_ALLOC_FAILED});
    EXPECT_EQ(int{status_failed}, int{GGML_STATUS_FAILED});
    EXPECT_EQ(int{status_success}, int{GGML_STATUS_SUCCESS});
    EXPECT_EQ(int{status_aborted}, int{GGML_STATUS_ABORTED});
    EXPECT_EQ(int{log_debug}, int{GGML_LOG_LEVEL_DEBUG});
    EXPECT_EQ(int{log_info}, int{GGML_LOG_LEVEL_INFO});
    EXPECT_EQ(int{log_warn}, int{GGML_LOG_LEVEL_WARN});
    EXPECT_EQ(int{log_error}, int{GGML_LOG_LEVEL_ERROR});
    EXPECT_EQ(int{device_cpu}, int{GGML_BACKEND_DEVICE_TYPE_CPU});
    EXPECT_EQ(int{device_gpu}, int{GGML_BACKEND_DEVICE_TYPE_GPU});
    EXPECT_EQ(int{device_igpu}, int{GGML_BACKEND_DEVICE_TYPE_IGPU});
    EXPECT_EQ(int{device_accel}, int{GGML_BACKEND_DEVICE_TYPE_ACCEL});
    EXPECT_EQ(int{usage_any}, int{GGML_BACKEND_BUFFER_USAGE_ANY});
    EXPECT_EQ(int{usage_weights}, int{GGML_BACKEND_BUFFER_USAGE_WEIGHTS});
    EXPECT_EQ(int{usage_compute}, int{GGML_BACKEND_BUFFER_USAGE_COMPUTE});
    EXPECT_EQ(int{flag_input}, int{GGML_TENSOR_FLAG_INPUT});
    EXPECT_EQ(int{flag_output}, int{GGML_TENSOR_FLAG_OUTPUT});
    EXPECT_EQ(int{flag_compute}, int{GGML_TENSOR_FLAG_COMPUTE});
    EXPECT_EQ(int{glu_geglu}, int{GGML_GLU_OP_GEGLU});
    EXPECT_EQ(int{glu_swiglu}, int{GGML_GLU_OP_SWIGLU});
    EXPECT_EQ(int{unary_step}, int{GGML_UNARY_OP_STEP});
    EXPECT_EQ(int{unary_exp}, int{GGML_UNARY_OP_EXP});
    EXPECT_EQ(int{sort_ascending}, int{GGML_SORT_ORDER_ASC});
    EXPECT_EQ(int{sort_descending}, int{GGML_SORT_ORDER_DESC});
    EXPECT_EQ(int{alloy::host::rope_normal}, GGML_ROPE_TYPE_NORMAL);
    EXPECT_EQ(int{alloy::host::rope_neox}, GGML_ROPE_TYPE_NEOX);
    EXPECT_EQ(int{type_f32}, int{GGML_TYPE_F32});
    EXPECT_EQ(int{type_f16}, int{GGML_TYPE_F16});
    EXPECT_EQ(int{type_i32}, int{GGML_TYPE_I32});
    EXPECT_EQ(int{type_i64}, int{GGML_TYPE_I64});
    EXPECT_EQ(int{type_bf16}, int{GGML_TYPE_BF16});
    EXPECT_EQ(int{op_count}, int{GGML_OP_COUNT});
    EXPECT_LE(int{op_count}, alloy::num_host_ops);
}
