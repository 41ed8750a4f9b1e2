#include "child.h"

#include "base/options.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

extern char ** environ;

namespace alloy::tool {
namespace {

namespace fs = std::filesystem;
using clock = std::chrono::steady_clock;

constexpr auto look_every = std::chrono::milliseconds(10);
constexpr auto settle = std::chrono::milliseconds(30); // after a line of output

volatile std::sig_atomic_t interrupted = 0;
void note_interrupt(int) { interrupted = 1; }

std::string contents(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

bool steers(const char * entry) {
    return std::strncmp(entry, "GGML_BACKEND_PATH=", 18) == 0 || std::strncmp(entry, "GGML_ALLOY", 10) == 0 ||
           std::strncmp(entry, "XDG_RUNTIME_DIR=", 16) == 0;
}

// Stock gets GGML_ALLOY=off too: the plugin may be installed where the host finds it by itself.
std::vector<std::string> environment_of(const side & as, const std::string & runtime) {
    std::vector<std::string> list;
    for (char ** entry = environ; *entry != nullptr; entry++) {
        const bool is_knob = std::strncmp(*entry, "GGML_ALLOY", 10) == 0;
        if (!steers(*entry) || (is_knob && !as.plugin.empty())) list.emplace_back(*entry);
    }
    const auto set = [&](const std::string & name, const std::string & value) {
        std::erase_if(list, [&](const std::string & entry) { return entry.rfind(name + "=", 0) == 0; });
        list.push_back(name + "=" + value);
    };
    set("XDG_RUNTIME_DIR", runtime);
    if (as.plugin.empty()) {
        set("GGML_ALLOY", "off");
    } else {
        set("GGML_BACKEND_PATH", as.plugin);
        set("GGML_ALLOY_COUNTERS", "1");
    }
    for (const auto & [name, value] : as.variables) set(name, value);
    return list;
}

// In a group of its own, so that ^C on the terminal reaches us first; it ends when we do, however that happens.
int start(const std::vector<std::string> & command, const side & as, const std::string & runtime, int out, int err) {
    std::vector<std::string> words = command, variables = environment_of(as, runtime);
    words.insert(words.end(), as.flags.begin(), as.flags.end());
    std::vector<char *> arguments, environment;
    for (std::string & word : words) arguments.push_back(word.data());
    for (std::string & variable : variables) environment.push_back(variable.data());
    arguments.push_back(nullptr);
    environment.push_back(nullptr);
    std::fflush(nullptr);
    const pid_t parent = getpid(), child = fork();
    if (child > 0) setpgid(child, child);
    if (child != 0) return child;
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    std::signal(SIGINT, SIG_DFL);
    std::signal(SIGTERM, SIG_DFL);
    dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    execve(arguments[0], arguments.data(), environment.data());
    dprintf(STDERR_FILENO, "%s: %s\n", arguments[0], std::strerror(errno));
    _exit(127);
}

// An open file outlives its name, so what is counted last can be read when the process is gone. -1: none yet.
int open_counters(const std::string & runtime, int process) {
    const std::string path = fmt::format("{}/ggml-alloy-{}/{}.counters", runtime, getuid(), process);
    return open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
}

std::unique_ptr<counter_block> read_counters(int file) {
    auto block = std::make_unique<counter_block>();
    if (file < 0 || pread(file, static_cast<void *>(block.get()), sizeof(counter_block), 0) != sizeof(counter_block))
        return nullptr;
    if (std::memcmp(block->magic, "alloyctr", 8) != 0 || block->version != counter_version) return nullptr;
    return block;
}

// Largest anonymous memory since the last line.
struct peak_since_line {
    clock::time_point since = clock::now();
    uint64_t settled = 0, any = 0;

    void add(uint64_t bytes) {
        any = std::max(any, bytes);
        if (clock::now() - since > settle) settled = std::max(settled, bytes);
    }
    uint64_t take() {
        const uint64_t bytes = settled > 0 ? settled : any;
        *this = {};
        return bytes;
    }
};

std::string signal_text(int signal) { return fmt::format("signal {} ({})", signal, strsignal(signal)); }

// Of all its threads; `state` is the main one's. The program's name, in parentheses, may hold anything.
uint64_t processor_ticks(int process, std::string & state) {
    const std::string text = contents(fmt::format("/proc/{}/stat", process));
    const size_t name_end = text.rfind(')');
    if (name_end == std::string::npos) return 0;
    std::istringstream fields(text.substr(name_end + 1));
    std::string skipped;
    uint64_t user = 0, system = 0;
    fields >> state;
    for (int i = 0; i < 10; i++) fields >> skipped;
    fields >> user >> system;
    return user + system;
}

// Reads what has come. Returns false at the end of the output.
bool drain(int pipe, std::string & text) {
    char bytes[4096];
    ssize_t got = 0;
    while ((got = read(pipe, bytes, sizeof(bytes))) > 0) text.append(bytes, static_cast<size_t>(got));
    return got < 0 && (errno == EAGAIN || errno == EINTR);
}

} // namespace

scratch_folder::scratch_folder() {
    std::error_code error;
    std::string name = (fs::temp_directory_path(error) / "alloy-XXXXXX").string();
    if (!error && mkdtemp(name.data()) != nullptr) path = name;
}

scratch_folder::~scratch_folder() {
    std::error_code error;
    if (!path.empty()) fs::remove_all(path, error);
}

std::string finished_child::ending() const {
    if (stopped) return "stopped";
    return signal != 0 ? signal_text(signal) : fmt::format("exit code {}", code);
}

std::string finished_child::last_words() const {
    std::istringstream lines(err);
    std::string last;
    for (std::string line; std::getline(lines, line);) {
        if (line.find_first_not_of(" \t\r") != std::string::npos) last = line;
    }
    return last;
}

uint64_t anonymous_bytes(int process) {
    std::ifstream file(fmt::format("/proc/{}/status", process));
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("RssAnon:", 0) == 0) return std::strtoull(line.c_str() + 8, nullptr, 10) * 1024;
    }
    return 0;
}

bool has_run(const counter_block & block) {
    const auto value = [&](counter which) { return block.values[static_cast<int>(which)].load(std::memory_order_relaxed); };
    const char * kernels = std::getenv("GGML_ALLOY_KERNELS");
    const bool without_kernels = kernels != nullptr && std::strcmp(kernels, "off") == 0;
    return value(counter::graphs) > 0 && (without_kernels || value(counter::kernel_steps) > 0);
}

void keep_interrupts() {
    struct sigaction action {};
    action.sa_handler = note_interrupt; // without SA_RESTART: a wait for a child or a socket ends
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
    std::signal(SIGPIPE, SIG_IGN);
}

bool was_interrupted() { return interrupted != 0; }

finished_child run_child(const std::vector<std::string> & command, const side & as, const line_watcher & line) {
    finished_child result;
    const scratch_folder runtime;
    int pipe[2];
    if (runtime.path.empty() || pipe2(pipe, O_CLOEXEC) != 0) {
        result.err = fmt::format("no temporary folder or pipe: {}", std::strerror(errno));
        return result;
    }
    fcntl(pipe[0], F_SETFL, O_NONBLOCK);
    const std::string log = runtime.path + "/stderr";
    const int err = open(log.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    const auto started = clock::now();
    const int process = start(command, as, runtime.path, pipe[1], err);
    close(pipe[1]);
    close(err);

    peak_since_line peak;
    size_t told = 0;
    int counters = -1, status = 0;
    bool is_running = process > 0;
    while (is_running) {
        if (was_interrupted() && !result.stopped) {
            kill(-process, SIGKILL); // the group: what was started may be a script
            result.stopped = true;
        }
        if (counters < 0) counters = open_counters(runtime.path, process);
        const uint64_t bytes = anonymous_bytes(process);
        result.peak = std::max(result.peak, bytes);
        peak.add(bytes);
        is_running = waitpid(process, &status, WNOHANG) == 0;
        drain(pipe[0], result.out);
        for (size_t end = 0; line && (end = result.out.find('\n', told)) != std::string::npos; told = end + 1)
            line(result.out.substr(told, end - told), peak.take());
        if (is_running) std::this_thread::sleep_for(look_every);
    }
    close(pipe[0]);
    result.seconds = std::chrono::duration<double>(clock::now() - started).count();
    if (process > 0 && WIFEXITED(status)) result.code = WEXITSTATUS(status);
    if (process > 0 && WIFSIGNALED(status)) result.signal = WTERMSIG(status);
    result.err = contents(log);
    result.counters = read_counters(counters);
    if (counters >= 0) close(counters);
    return result;
}

living_child::living_child(const std::vector<std::string> & command, const side & as) {
    if (runtime_.path.empty()) {
        ending_ = "no temporary folder";
        return;
    }
    const int log = open((runtime_.path + "/log").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    process_ = start(command, as, runtime_.path, log, log);
    close(log);
}

living_child::~living_child() {
    if (process_ > 0) {
        const int group = process_;
        kill(-group, SIGINT);
        const auto until = clock::now() + std::chrono::seconds(was_interrupted() ? 1 : 20);
        while (is_alive() && clock::now() < until) std::this_thread::sleep_for(look_every);
        if (is_alive()) {
            kill(-group, SIGKILL);
            waitpid(group, nullptr, 0);
        }
    }
    if (counter_file_ >= 0) close(counter_file_);
}

bool living_child::is_alive() {
    int status = 0;
    if (process_ > 0 && waitpid(process_, &status, WNOHANG) != 0) {
        ending_ = WIFSIGNALED(status) ? signal_text(WTERMSIG(status)) : fmt::format("exit code {}", WEXITSTATUS(status));
        process_ = -1;
    }
    return process_ > 0;
}

void living_child::begin_waiting() {
    std::string state;
    ticks_ = processor_ticks(process_, state);
    idle_ = 0;
    last_look_ = clock::now();
}

double living_child::idle_seconds() {
    constexpr double most_gap = 0.5; // between two looks; more is time in which we were stopped
    const auto now = clock::now();
    const double gone = std::chrono::duration<double>(now - last_look_).count();
    last_look_ = now;
    std::string state;
    const double worked =
        static_cast<double>(processor_ticks(process_, state) - ticks_) / static_cast<double>(sysconf(_SC_CLK_TCK));
    if (worked > 0.05 + 0.01 * idle_)
        begin_waiting();
    else if (state != "T" && state != "t" && state != "D") // stopped, at a debugger, at a disk
        idle_ += std::min(gone, most_gap);
    return idle_;
}

std::unique_ptr<counter_block> living_child::counters() {
    if (counter_file_ < 0) counter_file_ = open_counters(runtime_.path, process_);
    return read_counters(counter_file_);
}

std::string living_child::log() const { return contents(runtime_.path + "/log"); }

} // namespace alloy::tool
