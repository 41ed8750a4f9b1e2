// The part of libggml-base that `alloy doctor` looks at.
#include <cstddef>

#define FAKE_API extern "C" [[gnu::visibility("default")]]

namespace {
struct device {
    const char * name;
    const char * description;
    int type;
};
} // namespace

FAKE_API const char * ggml_version() { return "0.0.1-fake"; }
FAKE_API const char * ggml_backend_dev_name(void * d) { return static_cast<device *>(d)->name; }
FAKE_API const char * ggml_backend_dev_description(void * d) { return static_cast<device *>(d)->description; }
FAKE_API int ggml_backend_dev_type(void * d) { return static_cast<device *>(d)->type; }
