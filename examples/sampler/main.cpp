// sampler_example MODEL.gguf PROMPT [NUM_TOKENS]: text with the plugin's sampler in the program's own loop. Start it with
// GGML_BACKEND_PATH=.../libggml-alloy.so, as any program of llama.cpp.
#include "alloy_sampler.h"

#include <ggml-backend.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

static const ggml_alloy_api * find_api() {
    ggml_backend_reg_t registry = ggml_backend_reg_by_name("ALLOY");
    if (registry == nullptr) return nullptr;
    auto get = reinterpret_cast<ggml_alloy_get_api_t>(ggml_backend_reg_get_proc_address(registry, "ggml_alloy_get_api"));
    return get != nullptr ? get(GGML_ALLOY_API_VERSION) : nullptr;
}

int main(int argc, char ** argv) {
    if (argc < 3) return std::fprintf(stderr, "usage: %s MODEL.gguf PROMPT [NUM_TOKENS]\n", argv[0]), 2;
    ggml_backend_load_all();
    const ggml_alloy_api * api = find_api();
    if (api == nullptr) return std::fprintf(stderr, "no ggml-alloy here: set GGML_BACKEND_PATH to libggml-alloy.so\n"), 1;

    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) return 1;
    llama_context * context = llama_init_from_model(model, llama_context_default_params());
    const llama_vocab * vocab = llama_model_get_vocab(model);

    ggml_alloy_chain chain = api->default_chain();
    chain.top_p = 0.95f;
    chain.temperature = 0.8f;
    llama_sampler * sampler = alloy_sampler_init(api, chain, 64, 42);
    if (context == nullptr || sampler == nullptr) return 1;

    std::vector<llama_token> tokens(std::strlen(argv[2]) + 8);
    const int num = llama_tokenize(vocab, argv[2], static_cast<int32_t>(std::strlen(argv[2])), tokens.data(), static_cast<int32_t>(tokens.size()), true, true);
    if (num < 1) return std::fprintf(stderr, "the prompt has no tokens\n"), 1;
    llama_batch batch = llama_batch_get_one(tokens.data(), num);
    llama_token token;
    for (int i = 0; i < (argc > 3 ? std::atoi(argv[3]) : 64) && llama_decode(context, batch) == 0; i++) {
        token = alloy_sampler_sample(sampler, context, -1);
        if (token < 0 || llama_vocab_is_eog(vocab, token)) break;
        llama_sampler_accept(sampler, token);
        char text[256];
        const int length = llama_token_to_piece(vocab, token, text, sizeof(text), 0, true);
        std::printf("%.*s", std::max(length, 0), text);
        batch = llama_batch_get_one(&token, 1);
    }
    std::printf("\n");
    llama_sampler_free(sampler);
    llama_free(context);
    llama_model_free(model);
}
