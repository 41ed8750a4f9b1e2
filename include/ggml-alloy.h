/* Public C API of ggml-alloy, for programs that embed llama.cpp and want to look at the plugin from inside the process.
 *
 * libggml-alloy.so exports nothing but what ggml loads. The functions come as a table, through the registry:
 *
 *     ggml_backend_reg_t reg = ggml_backend_reg_by_name("ALLOY");
 *     ggml_alloy_get_api_t get = (ggml_alloy_get_api_t) ggml_backend_reg_get_proc_address(reg, "ggml_alloy_get_api");
 *     const struct ggml_alloy_api * alloy = get(GGML_ALLOY_API_VERSION);      // NULL: the plugin is older than this header
 */
#ifndef GGML_ALLOY_H
#define GGML_ALLOY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GGML_ALLOY_API_VERSION 1

struct ggml_alloy_api {
    uint32_t version;             /* GGML_ALLOY_API_VERSION of the plugin, at least the one asked for */
    const char * plugin_version;  /* "0.1.0" */

    /* Counters of this process, the ones that `alloy status` shows. Index 0 .. counter_count() - 1. */
    size_t (*counter_count)(void);
    const char * (*counter_name)(size_t index);  /* NULL when out of range */
    const char * (*counter_unit)(size_t index);  /* "bytes", "nodes", ...; NULL when out of range */
    uint64_t (*counter_value)(size_t index);     /* 0 when out of range */
};

typedef const struct ggml_alloy_api * (*ggml_alloy_get_api_t)(uint32_t version);

#ifdef __cplusplus
}
#endif

#endif /* GGML_ALLOY_H */
