// A libggml that does what `alloy doctor` looks at and nothing else. FAKE_HOST chooses how it behaves.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <dlfcn.h>
#include <unistd.h>

#define FAKE_API extern "C" [[gnu::visibility("default")]]

FAKE_API const char * ggml_version();
#ifdef FAKE_CPU_LINKED_IN
FAKE_API int ggml_backend_cpu_reg();
#endif

namespace {

struct device {
    const char * name;
    const char * description;
    int type; // 0 CPU, 1 GPU, 2 IGPU
};
device devices[4];
size_t count = 0;

bool behaves(const char * how) {
    const char * mode = std::getenv("FAKE_HOST");
    return mode != nullptr && std::strcmp(mode, how) == 0;
}

void load_plugin(const char * path) {
    void * plugin = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const auto score = plugin ? reinterpret_cast<int (*)()>(dlsym(plugin, "ggml_backend_score")) : nullptr;
    if (score == nullptr)
        std::fprintf(stderr, "load_backend: failed to load %s\n", path);
    else if (score() == 0)
        std::fprintf(stderr, "load_backend: backend %s is not supported on this system\n", path);
    else
        devices[count++] = {"ALLOY0", "ggml-alloy 9.9.9 (CPU)", 2};
}

} // namespace

FAKE_API void ggml_backend_load_all() {
    std::fprintf(stderr, "fake host %s loads its backends\n", ggml_version());
    if (behaves("crash")) std::raise(SIGKILL);
    if (behaves("hang")) pause();
    if (behaves("exit")) _exit(3);
#ifdef FAKE_CPU_LINKED_IN
    ggml_backend_cpu_reg();
#endif
    devices[count++] = {"CPU", "some CPU", 0};
    if (behaves("gpu")) devices[count++] = {"CUDA0", "some GPU", 1};
    if (behaves("igpu")) devices[count++] = {"Vulkan0", "some integrated GPU", 2};
    if (const char * path = std::getenv("GGML_BACKEND_PATH")) load_plugin(path);
}

FAKE_API size_t ggml_backend_dev_count() { return count; }
FAKE_API void * ggml_backend_dev_get(size_t index) { return &devices[index]; }
