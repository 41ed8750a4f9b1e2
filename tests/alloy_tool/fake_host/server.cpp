// A llama-server whose tokens are bytes and whose model repeats: what followed the last 8 tokens when they were there before.
// FAKE_SERVER chooses how it fails: "dies" at the start, "crashes" at a completion; "loads" without end, "deaf": takes no
// connection, "silent": never answers a completion; "nonsense", "tokenless", "cut": answers that are none. FAKE_SERVER_BUSY=N:
// the first N starts find their port taken. FAKE_SERVER_WORK=S: a completion takes so long, all of it work. FAKE_SERVER_LOG gets
// a line a start: process, and "stock" or the value of GGML_ALLOY_KV. With GGML_ALLOY_KV=compact it forgets all but the last 300
// tokens and writes other texts from the 11th token on.
#include "host_side.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <fstream>
#include <thread>
#include <vector>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

using fake::variable;
using nlohmann::json;
using tokens = std::vector<int>;

namespace {

bool forgets = false;

bool behaves(const char * how) { return variable("FAKE_SERVER") == how; }

int next_token(const tokens & text) {
    constexpr std::ptrdiff_t look = 8;
    const auto from = text.begin() + (forgets ? std::max<std::ptrdiff_t>(0, std::ssize(text) - 300) : 0);
    if (text.end() - from <= look) return '.';
    const auto found = std::search(from, text.end() - 1, text.end() - look, text.end());
    return found + look < text.end() ? found[look] : 'a' + static_cast<int>(text.size() % 26);
}

json completion(const json & asked) {
    const auto until =
        std::chrono::steady_clock::now() + std::chrono::duration<double>(std::atof(variable("FAKE_SERVER_WORK").c_str()));
    while (std::chrono::steady_clock::now() < until) {
    }
    if (behaves("crashes")) std::raise(SIGSEGV);
    if (behaves("silent")) pause();
    tokens text = asked.at("prompt"), made;
    for (int i = 0; i < asked.at("n_predict"); i++) {
        made.push_back(next_token(text) + (forgets && i >= 10 ? 1 : 0));
        text.push_back(made.back());
    }
    return {{"tokens", made}, {"content", ""}};
}

json tokenized(const json & asked) {
    tokens made(asked.at("add_special") == true ? 1 : 0, 0);
    for (const char c : asked.at("content").get<std::string>()) made.push_back(static_cast<unsigned char>(c));
    return {{"tokens", made}};
}

std::string answer(const std::string & path, const std::string & body, const std::string & name) {
    if (path == "/health") return "{\"status\":\"ok\"}";
    if (path == "/v1/models") return json{{"data", {{{"id", name}}}}}.dump();
    if (behaves("nonsense")) return "<html>\nnothing here";
    if (behaves("tokenless")) return "{\"content\": \"a\"}";
    const json asked = json::parse(body);
    return (path == "/tokenize" ? tokenized(asked) : completion(asked)).dump();
}

// In two chunks, as servers may.
std::string chunked(const std::string & body) {
    const size_t half = body.size() / 2;
    char sizes[2][32];
    std::snprintf(sizes[0], sizeof(sizes[0]), "%zx\r\n", half);
    std::snprintf(sizes[1], sizeof(sizes[1]), "%zx\r\n", body.size() - half);
    return sizes[0] + body.substr(0, half) + "\r\n" + sizes[1] + body.substr(half) + "\r\n0\r\n\r\n";
}

std::string request_of(int file) {
    std::string text;
    char bytes[65536];
    const auto whole = [&] {
        const size_t end = text.find("\r\n\r\n"), length = text.find("Content-Length: ");
        if (end == std::string::npos) return false;
        return length == std::string::npos || text.size() >= end + 4 + static_cast<size_t>(std::atol(text.c_str() + length + 16));
    };
    while (!whole()) {
        const ssize_t got = recv(file, bytes, sizeof(bytes), 0);
        if (got <= 0) break;
        text.append(bytes, static_cast<size_t>(got));
    }
    return text;
}

void serve_one(int file, const std::string & name) {
    const std::string request = request_of(file),
                      path = request.substr(request.find(' ') + 1, request.find(' ', 5) - request.find(' ') - 1);
    std::string reply = "HTTP/1.1 503 Loading\r\nContent-Length: 2\r\n\r\n{}";
    if (!behaves("loads")) {
        const size_t end = request.find("\r\n\r\n");
        const std::string body = answer(path, request.substr(end + 4), name);
        reply = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunked(body);
        if (behaves("cut") && path == "/completion") reply = "HTTP/1.1 2";
    }
    static_cast<void>(send(file, reply.data(), reply.size(), MSG_NOSIGNAL));
    close(file);
}

} // namespace

int main(int argc, char ** argv) {
    if (fake::told_version(argc, argv)) return 0;
    const bool has_plugin = fake::has_plugin(argc, argv);
    const std::string kv = variable("GGML_ALLOY_KV"), log = variable("FAKE_SERVER_LOG");
    std::ofstream(log, std::ios::app) << getpid() << ' ' << (has_plugin ? kv : "stock") << '\n';
    std::ifstream starts(log);
    if (std::count(std::istreambuf_iterator<char>(starts), {}, '\n') <= std::atoi(variable("FAKE_SERVER_BUSY").c_str())) {
        std::fputs("couldn't bind HTTP server socket\nexiting\n", stderr);
        return 1;
    }
    if (behaves("dies")) {
        std::fputs("error: no such architecture\n", stderr);
        return 3;
    }
    if (has_plugin) fake::count_some_work();
    forgets = has_plugin && kv == "compact";
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(std::atoi(fake::argument(argc, argv, "--port", "0").c_str())));
    if (bind(listener, reinterpret_cast<const sockaddr *>(&address), sizeof(address)) != 0 || listen(listener, 8) != 0) return 1;
    while (behaves("deaf")) pause();
    for (;;) serve_one(accept(listener, nullptr, nullptr), fake::argument(argc, argv, "-a", ""));
}
