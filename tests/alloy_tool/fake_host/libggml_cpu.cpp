extern "C" [[gnu::visibility("default")]] int ggml_backend_cpu_reg() { return 1; }
