#include "progress.h"

#include <cstdio>

#include <unistd.h>

#include <fmt/format.h>

namespace alloy::tool {

progress::progress(std::string command) : command_(std::move(command)), is_terminal_(isatty(STDERR_FILENO) != 0) {}

void progress::expect(const std::string & kind, int times) { kinds_[kind].ahead += times; }

void progress::forget(const std::string & kind) { kinds_.erase(kind); }

void progress::start(const std::string & what, const std::string & kind) {
    const double gone = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun_).count();
    const std::string line = fmt::format("{}: {} ({} gone{})", command_, what, clock_text(gone), kind.empty() ? "" : eta());
    std::fputs((is_terminal_ ? "\r\033[K" + line : line + "\n").c_str(), stderr);
    std::fflush(stderr);
}

void progress::finish(const std::string & kind, double seconds) {
    kind_of_step & step = kinds_[kind];
    step.ahead--;
    step.done++;
    step.seconds += seconds;
}

void progress::end() {
    if (is_terminal_) std::fputs("\r\033[K", stderr);
}

// Nothing before a step of every kind has been seen.
std::string progress::eta() const {
    double seconds = 0;
    for (const auto & [name, kind] : kinds_) {
        if (kind.ahead <= 0) continue;
        if (kind.done == 0) return "";
        seconds += kind.seconds / kind.done * kind.ahead;
    }
    return fmt::format(", ETA {}", clock_text(seconds));
}

std::string clock_text(double seconds) {
    const auto all = static_cast<long>(seconds);
    if (all >= 3600) return fmt::format("{}:{:02}:{:02}", all / 3600, all / 60 % 60, all % 60);
    return fmt::format("{}:{:02}", all / 60, all % 60);
}

} // namespace alloy::tool
