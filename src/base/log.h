// Log lines, given to the host's logger once the handshake has found it, to stderr before. WARN and ERROR are what users of the
// llama.cpp tools see; INFO needs -v.
#pragma once

namespace alloy {

enum class log_level : int { debug = 1, info = 2, warn = 3, error = 4 };

using log_sink = void (*)(log_level level, const char * line);
void set_log_sink(log_sink sink);

[[gnu::format(printf, 2, 3)]] void log(log_level level, const char * format, ...);

#define ALLOY_INFO(...) ::alloy::log(::alloy::log_level::info, __VA_ARGS__)
#define ALLOY_WARN(...) ::alloy::log(::alloy::log_level::warn, __VA_ARGS__)
#define ALLOY_ERROR(...) ::alloy::log(::alloy::log_level::error, __VA_ARGS__)

// The same line only once a process for each place in the source.
#define ALLOY_WARN_ONCE(...)                                               \
    do {                                                                   \
        static const bool said = (ALLOY_WARN(__VA_ARGS__), true);          \
        static_cast<void>(said);                                           \
    } while (0)

} // namespace alloy
