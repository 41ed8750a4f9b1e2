// Prints what it was started with, one a line, and ends as FAKE_EXIT or FAKE_SIGNAL says.
#include <csignal>
#include <cstdio>
#include <cstdlib>

#ifdef FAKE_STATIC
extern "C" const char * ggml_version() { return "ggml_backend_load_all"; }
#else
extern "C" const char * ggml_version();
extern "C" size_t ggml_backend_dev_count(); // keeps libggml among the needed libraries
#endif

int main(int argc, char ** argv) {
#ifndef FAKE_STATIC
    if (ggml_backend_dev_count() != 0) return 99;
#endif
    const char * path = std::getenv("GGML_BACKEND_PATH");
    std::printf("ggml %s\nGGML_BACKEND_PATH=%s\n", ggml_version(), path ? path : "");
    for (int i = 1; i < argc; i++) std::printf("[%s]\n", argv[i]);
    std::fflush(stdout);
    if (const char * number = std::getenv("FAKE_SIGNAL")) std::raise(std::atoi(number));
    const char * code = std::getenv("FAKE_EXIT");
    return code ? std::atoi(code) : 0;
}
