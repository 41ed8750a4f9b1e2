#include "host_probe.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

// --- the child ---

// Answers are lines "key value", written at once: what was found before a crash is kept.
void answer(int pipe, const std::string & line) {
    const std::string text = line + "\n";
    if (write(pipe, text.data(), text.size()) < 0) _exit(1);
}

template <typename F> F * function(void * library, const char * name) { return reinterpret_cast<F *>(dlsym(library, name)); }

std::string one_line(const char * text) {
    std::string line = text ? text : "";
    std::replace_if(
        line.begin(), line.end(), [](unsigned char c) { return c < 32; }, ' ');
    return line;
}

void list_devices(void * ggml, int answers) {
    const auto count = function<size_t()>(ggml, "ggml_backend_dev_count");
    const auto get = function<void *(size_t)>(ggml, "ggml_backend_dev_get");
    const auto name = function<const char *(void *)>(ggml, "ggml_backend_dev_name");
    const auto description = function<const char *(void *)>(ggml, "ggml_backend_dev_description");
    const auto type = function<int(void *)>(ggml, "ggml_backend_dev_type");
    if (!count || !get || !name || !description || !type)
        return answer(answers, "failure this libggml has no list of devices: too old for plugins");
    for (size_t i = 0; i < count(); i++) {
        void * device = get(i);
        answer(answers, fmt::format("device {}\t{}\t{}", type(device), one_line(name(device)), one_line(description(device))));
    }
}

[[noreturn]] void run_child(const llama_host & target, const std::string & plugin, int answers) {
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    // The host looks for its backends beside its program and in the current folder; the program here is alloy.
    if (chdir(target.folder.c_str()) != 0) answer(answers, "failure cannot enter " + target.folder);
    // Nothing must show up in `alloy status`; a wrong value stays, so that the plugin refuses it as it would.
    const char * counters = std::getenv("GGML_ALLOY_COUNTERS");
    if (counters == nullptr || *counters == 0 || std::strcmp(counters, "1") == 0) setenv("GGML_ALLOY_COUNTERS", "0", 1);
    if (plugin.empty())
        unsetenv("GGML_BACKEND_PATH");
    else
        setenv("GGML_BACKEND_PATH", plugin.c_str(), 1);

    // One by one, since a RUNPATH of the program does not count for libraries that we open.
    void * ggml = nullptr;
    for (const std::string & library : target.libraries) {
        ggml = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (ggml == nullptr && library == target.libggml) {
            answer(answers, "failure " + one_line(dlerror()));
            _exit(0);
        }
    }
    const auto version = function<const char *()>(ggml, "ggml_version");
    if (version) answer(answers, "version " + one_line(version()));
    const auto load_all = function<void()>(ggml, "ggml_backend_load_all");
    if (!load_all) {
        answer(answers, "failure this libggml has no ggml_backend_load_all: too old for plugins");
        _exit(0);
    }
    load_all();
    list_devices(ggml, answers);
    answer(answers, "end");
    std::fflush(nullptr);
    _exit(0); // no destructors: some drivers crash in theirs
}

// --- the parent ---

struct stream {
    int file = -1;
    std::string text;
};

// Reads both streams until they end. Returns false when the time is over.
bool read_streams(stream (&streams)[2], int timeout_ms) {
    constexpr size_t longest = size_t(1) << 20;
    using clock = std::chrono::steady_clock;
    const auto deadline = clock::now() + std::chrono::milliseconds(timeout_ms);
    for (int open_count = 2; open_count > 0;) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - clock::now()).count();
        if (left <= 0) return false;
        pollfd polled[2] = {{streams[0].file, POLLIN, 0}, {streams[1].file, POLLIN, 0}};
        if (poll(polled, 2, static_cast<int>(left)) < 0 && errno != EINTR) return false;
        for (int i = 0; i < 2; i++) {
            if ((polled[i].revents & (POLLIN | POLLHUP | POLLERR)) == 0) continue;
            char bytes[4096];
            const ssize_t got = read(streams[i].file, bytes, sizeof(bytes));
            if (got > 0 && streams[i].text.size() < longest) streams[i].text.append(bytes, static_cast<size_t>(got));
            if (got > 0 || (got < 0 && errno == EINTR)) continue;
            close(streams[i].file);
            streams[i].file = -1; // poll passes over it
            open_count--;
        }
    }
    return true;
}

void parse_answers(const std::string & text, probe_result & result, bool & came_to_end) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        const std::string key = line.substr(0, line.find(' ')),
                          value = line.size() > key.size() ? line.substr(key.size() + 1) : "";
        if (key == "version")
            result.version = value;
        else if (key == "failure")
            result.failure = value;
        else if (key == "end")
            came_to_end = true;
        else if (key == "device") {
            const size_t first = value.find('\t'), second = value.find('\t', first + 1);
            if (second == std::string::npos) continue;
            result.devices.push_back(
                {value.substr(first + 1, second - first - 1), value.substr(second + 1), std::atoi(value.c_str())});
        }
    }
}

std::string ending(int status) {
    if (WIFSIGNALED(status))
        return fmt::format("the host crashed while loading: signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));
    return fmt::format("the host ended while loading: exit code {}", WEXITSTATUS(status));
}

} // namespace

const probed_device * probe_result::alloy() const {
    const auto found = std::find_if(devices.begin(), devices.end(), [](const probed_device & d) { return d.name == "ALLOY0"; });
    return found == devices.end() ? nullptr : &*found;
}

probe_result probe_host(const llama_host & target, const std::string & plugin, int timeout_ms) {
    probe_result result;
    int answers[2], output[2];
    if (pipe2(answers, O_CLOEXEC) != 0 || pipe2(output, O_CLOEXEC) != 0) {
        result.failure = "no pipe for the test process";
        return result;
    }
    std::fflush(nullptr); // else the child would print our own lines again
    const pid_t child = fork();
    if (child == 0) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL); // an interrupted doctor leaves nothing behind
        const int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
        dup2(nothing, STDIN_FILENO);
        dup2(output[1], STDOUT_FILENO);
        dup2(output[1], STDERR_FILENO);
        close(answers[0]);
        close(output[0]);
        run_child(target, plugin, answers[1]);
    }
    close(answers[1]);
    close(output[1]);
    stream streams[2] = {{answers[0], {}}, {output[0], {}}};
    const bool in_time = child > 0 && read_streams(streams, timeout_ms);
    int status = 0;
    if (child > 0) {
        if (!in_time) kill(-child, SIGKILL), kill(child, SIGKILL);
        while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
        }
    }
    for (const stream & s : streams) {
        if (s.file >= 0) close(s.file);
    }
    bool came_to_end = false;
    parse_answers(streams[0].text, result, came_to_end);
    std::istringstream lines(streams[1].text);
    for (std::string line; std::getline(lines, line);) result.log.push_back(one_line(line.c_str()));
    if (child < 0)
        result.failure = "no process for the test";
    else if (!in_time)
        result.failure = fmt::format("the host did not finish loading within {} s", timeout_ms / 1000.0);
    else if (!came_to_end && result.failure.empty())
        result.failure = ending(status);
    return result;
}

} // namespace alloy::tool
