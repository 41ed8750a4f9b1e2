#include "base/log.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace alloy {
namespace {

void to_stderr(log_level level, const char * line) {
    if (level >= log_level::warn) std::fputs(line, stderr);
}

std::atomic<log_sink> current_sink{to_stderr};

} // namespace

void set_log_sink(log_sink sink) { current_sink.store(sink ? sink : to_stderr); }

void log(log_level level, const char * format, ...) {
    char line[512];
    int length = std::snprintf(line, sizeof(line), "ggml-alloy: ");
    va_list arguments;
    va_start(arguments, format);
    length += std::vsnprintf(line + length, sizeof(line) - length - 1, format, arguments);
    va_end(arguments);
    if (length > static_cast<int>(sizeof(line)) - 2) length = sizeof(line) - 2;
    line[length] = '\n';
    line[length + 1] = 0;
    current_sink.load()(level, line);
}

} // namespace alloy
