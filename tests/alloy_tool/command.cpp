#include "command.h"

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace alloy::test {
namespace {

namespace fs = std::filesystem;

constexpr const char * steering[] = {
#define ALLOY_OPTION(name, variable, kind, standard, values, help) variable,
#include "base/options.inc"
#undef ALLOY_OPTION
    "GGML_BACKEND_PATH", "LLAMA_ARG_DEVICE", "LD_LIBRARY_PATH", "FAKE_HOST", "FAKE_PLUGIN_REFUSES", "FAKE_EXIT", "FAKE_SIGNAL",
};

pid_t start_command(const std::vector<std::string> & command, const environment & set, const fs::path & out,
                    const fs::path & err) {
    const pid_t child = fork();
    if (child != 0) return child;
    for (const char * variable : steering) unsetenv(variable);
    for (const auto & [variable, value] : set) setenv(variable.c_str(), value.c_str(), 1);
    dup2(open(out.c_str(), O_WRONLY | O_CREAT, 0600), STDOUT_FILENO);
    dup2(open(err.c_str(), O_WRONLY | O_CREAT, 0600), STDERR_FILENO);
    std::vector<char *> arguments;
    for (const std::string & word : command) arguments.push_back(const_cast<char *>(word.c_str()));
    arguments.push_back(nullptr);
    execv(arguments[0], arguments.data());
    _exit(98);
}

} // namespace

std::string contents(const fs::path & path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

finished run_command(const std::vector<std::string> & command, const environment & set) {
    const temporary_folder folder;
    const fs::path out = folder.path / "out", err = folder.path / "err";
    const auto start = std::chrono::steady_clock::now();
    const pid_t child = start_command(command, set, out, err);
    finished result;
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (WIFEXITED(status)) result.code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
    result.out = contents(out);
    result.err = contents(err);
    return result;
}

finished run_alloy(std::vector<std::string> arguments, const environment & set) {
    arguments.insert(arguments.begin(), ALLOY_BINARY);
    return run_command(arguments, set);
}

int start_alloy(std::vector<std::string> arguments, const environment & set) {
    arguments.insert(arguments.begin(), ALLOY_BINARY);
    return start_command(arguments, set, "/dev/null", "/dev/null");
}

int ended_with(int process) {
    int status = 0;
    while (waitpid(process, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool has(const std::string & text, const std::string & part) { return text.find(part) != std::string::npos; }

temporary_folder::temporary_folder() {
    std::string name = (fs::temp_directory_path() / "alloy-test-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path = name;
}

temporary_folder::~temporary_folder() {
    std::error_code error;
    fs::remove_all(path, error);
}

std::string temporary_folder::write(const std::string & name, const std::string & bytes) const {
    std::ofstream(path / name, std::ios::binary) << bytes;
    return (path / name).string();
}

std::string fake_host(const std::string & kind) { return std::string(ALLOY_FAKE_HOSTS) + "/" + kind; }
std::string fake_plugin() { return std::string(ALLOY_FAKE_HOSTS) + "/plugin/libggml-alloy.so"; }

} // namespace alloy::test
