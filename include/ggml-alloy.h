/* Public C API of ggml-alloy, for programs that embed llama.cpp and want to look at the plugin from inside the process, or
 * sample with it.
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

#define GGML_ALLOY_API_VERSION 2

enum ggml_alloy_status {
    GGML_ALLOY_OK = 0,
    GGML_ALLOY_BAD_ARGUMENT = -1, /* a null pointer, no token, a parameter that is NaN, a uniform outside [0, 1] */
    GGML_ALLOY_NO_TOKEN = -2,     /* every logit is -inf or NaN */
    GGML_ALLOY_NO_MEMORY = -3
};

struct ggml_alloy_token_bias {
    int32_t token;
    float bias;
};
struct ggml_alloy_token_count {
    int32_t token;
    int32_t count; /* how often among the last tokens, at least 1 */
};

/* llama.cpp's default chain, in its order. Start from default_chain(), which changes nothing, and set what is wanted. Tokens out of
 * range are passed over; values out of range mean what llama.cpp's samplers make of them. */
struct ggml_alloy_chain {
    size_t size; /* sizeof(struct ggml_alloy_chain), set by default_chain() */
    const struct ggml_alloy_token_bias * biases;
    size_t num_biases;
    const struct ggml_alloy_token_count * counts; /* of the tokens that penalties apply to, each once */
    size_t num_counts;
    float repeat_penalty;    /* 1: off; above 0 */
    float frequency_penalty; /* 0: off */
    float presence_penalty;  /* 0: off */
    float top_n_sigma;       /* <= 0: off */
    int64_t top_k;           /* <= 0: off */
    float top_p;             /* >= 1: off */
    float min_p;             /* <= 0: off */
    int64_t min_keep;        /* top-p and min-p keep at least as many */
    float temperature;       /* <= 0: the token with the highest logit */
};

struct ggml_alloy_draw {
    int32_t token;     /* -1 unless the status is GGML_ALLOY_OK */
    float probability; /* among the tokens that were left */
};

struct ggml_alloy_sampler; /* memory of one thread's sampling; about 32 bytes a token of the vocabulary */

struct ggml_alloy_api {
    uint32_t version;             /* GGML_ALLOY_API_VERSION of the plugin, at least the one asked for */
    const char * plugin_version;  /* "0.1.0" */

    /* Counters of this process, the ones that `alloy status` shows. Index 0 .. counter_count() - 1. */
    size_t (*counter_count)(void);
    const char * (*counter_name)(size_t index);  /* NULL when out of range */
    const char * (*counter_unit)(size_t index);  /* "bytes", "nodes", ...; NULL when out of range */
    uint64_t (*counter_value)(size_t index);     /* 0 when out of range */

    /* Since version 2: sampling from raw logits (llama_get_logits_ith), which are not changed. A sampler serves one thread at a time. */
    struct ggml_alloy_chain (*default_chain)(void);
    struct ggml_alloy_sampler * (*sampler_new)(void); /* NULL: no memory, or no kernel for this CPU */
    void (*sampler_free)(struct ggml_alloy_sampler * sampler);
    /* The token that `uniform` in [0, 1] selects; one uniform for each token, whatever the chain. With
     * std::uniform_real_distribution<double> on std::mt19937(seed) it is the token that llama_sampler_init_dist(seed) draws. Returns a
     * ggml_alloy_status. */
    int (*sample)(struct ggml_alloy_sampler * sampler, const float * logits, int64_t num_tokens, const struct ggml_alloy_chain * chain,
                  double uniform, struct ggml_alloy_draw * draw);
    /* The tokens that sample() draws from, highest logit first, and their logits with biases and penalties: up to `capacity` of them
     * into `tokens` and `token_logits`. Returns how many there are, or a ggml_alloy_status below 0. */
    int64_t (*candidates)(struct ggml_alloy_sampler * sampler, const float * logits, int64_t num_tokens, const struct ggml_alloy_chain * chain,
                          int32_t * tokens, float * token_logits, int64_t capacity);
};

typedef const struct ggml_alloy_api * (*ggml_alloy_get_api_t)(uint32_t version);

#ifdef __cplusplus
}
#endif

#endif /* GGML_ALLOY_H */
