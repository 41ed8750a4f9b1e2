// alloy metrics and top on counters of processes that live. The text is read by the rules of Prometheus' exposition format.
#include "child.h"
#include "loopback_http.h"
#include "metrics.h"

#include "command.h"

#include <chrono>
#include <csignal>
#include <cstring>
#include <ctime>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <thread>

#include <arpa/inet.h>
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

namespace alloy::test {
namespace {

namespace fs = std::filesystem;

tool::counter_file file_of(int process, const char * program) {
    tool::counter_file file{"", std::make_unique<counter_block>()};
    counter_block & block = *file.block;
    std::memcpy(block.magic, "alloyctr", 8);
    block.version = counter_version;
    block.num_counters = num_counters;
    block.process = process;
    block.started = static_cast<uint64_t>(std::time(nullptr));
    std::strcpy(block.program, program);
    std::strcpy(block.host, "0.26.0");
    std::strcpy(block.isa, "avx2");
    block.values[static_cast<int>(counter::tokens)] = 12345;
    block.values[static_cast<int>(counter::kv_live_bytes)] = 5 << 20;
    block.delegated[29] = 40;
    std::strcpy(block.op_names[29], "MUL_MAT");
    return file;
}

struct sample {
    std::map<std::string, std::string> labels;
    double value;
};

// Every line must follow the format, and every sample its family's HELP and TYPE, all samples of a family in one piece.
std::map<std::string, std::vector<sample>> parsed(const std::string & text) {
    static const std::regex head(R"(# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+))"),
        line(R"(([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ([0-9.e+-]+))"),
        label(R"re(([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(,|$))re");
    std::map<std::string, std::vector<sample>> families;
    std::set<std::string> helped, typed;
    std::string current;
    std::istringstream lines(text);
    EXPECT_EQ(text.back(), '\n');
    for (std::string one; std::getline(lines, one);) {
        std::smatch match;
        if (std::regex_match(one, match, head)) {
            EXPECT_TRUE((match[1] == "HELP" ? helped : typed).insert(match[2]).second) << one;
            if (match[1] == "TYPE") {
                EXPECT_TRUE(match[3] == "counter" || match[3] == "gauge") << one;
                EXPECT_EQ(match[3] == "counter", match[2].str().ends_with("_total")) << one;
            }
            current = match[2];
            continue;
        }
        EXPECT_TRUE(std::regex_match(one, match, line)) << one;
        EXPECT_EQ(match[1], current) << one;
        EXPECT_TRUE(helped.count(current) && typed.count(current)) << one;
        sample found{{}, std::stod(match[3])};
        std::string rest = match[2];
        for (std::smatch part; !rest.empty() && std::regex_search(rest, part, label, std::regex_constants::match_continuous);
             rest = part.suffix())
            found.labels[part[1]] = part[2];
        EXPECT_EQ(rest, "") << one;
        families[current].push_back(found);
    }
    return families;
}

TEST(metrics, follow_the_format) {
    std::vector<tool::counter_file> files;
    files.push_back(file_of(11, "llama-server"));
    files.push_back(file_of(12, "with \"quotes\" and \\"));
    auto families = parsed(tool::prometheus_text(files));
    EXPECT_EQ(families["alloy:processes"][0].value, 2);
    ASSERT_EQ(families["alloy:tokens_total"].size(), 2u);
    EXPECT_EQ(families["alloy:tokens_total"][0].value, 12345);
    EXPECT_EQ(families["alloy:tokens_total"][0].labels["program"], "llama-server");
    EXPECT_EQ(families["alloy:tokens_total"][1].labels["program"], R"(with \"quotes\" and \\)");
    EXPECT_EQ(families["alloy:kv_live_bytes"][0].value, 5 << 20);
    EXPECT_EQ(families["alloy:delegated_op_nodes_total"][0].labels["op"], "MUL_MAT");
    EXPECT_EQ(parsed(tool::prometheus_text({}))["alloy:processes"][0].value, 0);
}

// A running `alloy metrics` over a folder of counters.
struct running_metrics {
    temporary_folder runtime;
    pid_t process = -1;
    int port = 0;

    running_metrics() {
        const fs::path folder = runtime.path / ("ggml-alloy-" + std::to_string(getuid()));
        fs::create_directory(folder);
        const tool::counter_file file = file_of(getpid(), "llama-server");
        std::ofstream(folder / (std::to_string(getpid()) + ".counters"), std::ios::binary)
            .write(reinterpret_cast<const char *>(file.block.get()), sizeof(counter_block));
        const std::string err = runtime.path / "err";
        process = fork();
        if (process == 0) {
            setenv("XDG_RUNTIME_DIR", runtime.path.c_str(), 1);
            if (freopen(err.c_str(), "w", stderr) != nullptr) execl(ALLOY_BINARY, "alloy", "metrics", "--port", "0", nullptr);
            _exit(98);
        }
        for (int i = 0; i < 1000 && port == 0; i++) {
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
            std::ifstream told(err);
            std::string line;
            std::getline(told, line);
            if (const size_t at = line.find("127.0.0.1:"); at != std::string::npos && !told.eof())
                port = std::atoi(line.c_str() + at + 10);
        }
    }
    int end(int signal) {
        int status = 0;
        kill(process, signal);
        waitpid(process, &status, 0);
        process = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }
    ~running_metrics() {
        if (process > 0) end(SIGKILL);
    }
};

TEST(metrics, are_served_on_loopback_only) {
    running_metrics server;
    ASSERT_GT(server.port, 0);
    const tool::http_answer answer = tool::ask_loopback(server.port, "/metrics");
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(parsed(answer.body)["alloy:tokens_total"][0].value, 12345);
    EXPECT_EQ(tool::ask_loopback(server.port, "/").status, 404);
    EXPECT_EQ(tool::ask_loopback(server.port, "/metrics", "{}").status, 405);
    // 0100007F is 127.0.0.1; a listener of everybody's would be 00000000.
    std::ifstream sockets("/proc/net/tcp");
    char own[16];
    std::snprintf(own, sizeof(own), ":%04X", server.port);
    for (std::string line; std::getline(sockets, line);) {
        const bool listens = line.find(" 0A ") != std::string::npos,
                   is_ours = line.find(std::string(own) + " 00000000:0000") != std::string::npos;
        if (listens && is_ours) EXPECT_NE(line.find("0100007F"), std::string::npos) << line;
    }
    const finished second = run_alloy({"metrics", "--port", std::to_string(server.port)});
    EXPECT_EQ(second.code, 2);
    EXPECT_TRUE(has(second.err, "of 127.0.0.1: Address already in use")) << second.err;
    EXPECT_EQ(server.end(SIGINT), 0);
}

TEST(metrics, bad_requests_do_not_stop_it) {
    running_metrics server;
    for (const std::string & request :
         {std::string("nonsense\r\n\r\n"), std::string(40000, 'x'), std::string("GET \r\n\r\n"), std::string()}) {
        const int s = socket(AF_INET, SOCK_STREAM, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(static_cast<uint16_t>(server.port));
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        ASSERT_EQ(connect(s, reinterpret_cast<sockaddr *>(&address), sizeof(address)), 0);
        if (!request.empty()) send(s, request.data(), request.size(), MSG_NOSIGNAL);
        close(s);
    }
    EXPECT_EQ(tool::ask_loopback(server.port, "/metrics").status, 200);
}

#ifdef ALLOY_HAS_TOP
TEST(top, once_and_without_a_terminal) {
    running_metrics counters; // for its folder
    const finished once = run_alloy({"top", "--once"}, {{"XDG_RUNTIME_DIR", counters.runtime.path}});
    EXPECT_EQ(once.code, 0);
    EXPECT_TRUE(has(once.out, "llama-server (" + std::to_string(getpid()) + ")") && has(once.out, "live 5.0 of 0.0") &&
                has(once.out, "MUL_MAT 40"))
        << once.out;
    const finished live = run_alloy({"top"});
    EXPECT_EQ(live.code, 2);
    EXPECT_TRUE(has(live.err, "no terminal")) << live.err;
}

// What a terminal of 80x24 gets until q is pressed, without its control sequences.
std::string shown_by_top(const fs::path & runtime, int & code) {
    winsize size{24, 80, 0, 0};
    int terminal = -1;
    const pid_t process = forkpty(&terminal, nullptr, nullptr, &size);
    if (process == 0) {
        setenv("XDG_RUNTIME_DIR", runtime.c_str(), 1);
        setenv("TERM", "xterm", 1);
        execl(ALLOY_BINARY, "alloy", "top", "--interval", "0.1", nullptr);
        _exit(98);
    }
    std::string text;
    char bytes[4096];
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(1500);
    for (bool has_quit = false; !has_quit || std::chrono::steady_clock::now() < until + std::chrono::seconds(5);) {
        if (!has_quit && std::chrono::steady_clock::now() > until) has_quit = write(terminal, "q", 1) == 1;
        pollfd ready{terminal, POLLIN, 0};
        if (poll(&ready, 1, 100) <= 0) continue;
        const ssize_t got = read(terminal, bytes, sizeof(bytes));
        if (got <= 0) break; // it has ended
        text.append(bytes, static_cast<size_t>(got));
    }
    close(terminal);
    code = ended_with(process);
    return std::regex_replace(text, std::regex("\x1b(\\[[0-9;?]*[A-Za-z]|\\([A-Z0-9]|[=>])"), "\n");
}

TEST(top, fits_a_small_terminal) {
    running_metrics counters;
    int code = -1;
    std::string text = shown_by_top(counters.runtime.path, code);
    EXPECT_EQ(code, 0);
    EXPECT_TRUE(has(text, "alloy top") && has(text, "llama-server (" + std::to_string(getpid()) + ")") && has(text, "MUL_MAT 40"))
        << text;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 80u) << line;
    EXPECT_TRUE(has(text, "delegated 0\n") && has(text, "failed graphs 0\n")) << text; // to their ends
    const temporary_folder nothing;
    text = shown_by_top(nothing.path, code);
    EXPECT_EQ(code, 0);
    EXPECT_TRUE(has(text, "No process uses the plugin now.")) << text;
}
#endif

} // namespace
} // namespace alloy::test
