#include "loopback_http.h"

#include "child.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

constexpr size_t most_head = 16384; // bytes of a request's or an answer's head

struct socket_file {
    int file = -1;
    ~socket_file() {
        if (file >= 0) close(file);
    }
};

sockaddr_in loopback_address(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port));
    return address;
}

int port_of(int file) {
    sockaddr_in address{};
    socklen_t length = sizeof(address);
    return getsockname(file, reinterpret_cast<sockaddr *>(&address), &length) == 0 ? ntohs(address.sin_port) : 0;
}

bool send_all(int file, const std::string & bytes) {
    for (size_t sent = 0; sent < bytes.size();) {
        const ssize_t step = send(file, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
        if (step < 0 && errno == EINTR && !was_interrupted()) continue;
        if (step <= 0) return false;
        sent += static_cast<size_t>(step);
    }
    return true;
}

constexpr int turn_ms = 200;

// Waits in short turns, so that ^C is seen. Returns false at the end, an error, ^C, or when `is_worth_it` says no.
bool receive(int file, std::string & into, const std::function<bool()> & is_worth_it) {
    while (!was_interrupted()) {
        pollfd ready{file, POLLIN, 0};
        if (poll(&ready, 1, turn_ms) <= 0) {
            if (is_worth_it && !is_worth_it()) return false;
            continue;
        }
        char bytes[16384];
        const ssize_t got = recv(file, bytes, sizeof(bytes), 0);
        if (got > 0) into.append(bytes, static_cast<size_t>(got));
        return got > 0;
    }
    return false;
}

std::string without_chunks(const std::string & body) {
    std::string whole;
    for (size_t at = 0; at < body.size();) {
        const size_t length = std::strtoul(body.c_str() + at, nullptr, 16), begin = body.find("\r\n", at);
        if (length == 0 || begin == std::string::npos) break;
        whole += body.substr(begin + 2, length);
        at = std::min(body.size(), begin + 2 + length + 2);
    }
    return whole;
}

std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    return text;
}

const char * meaning(int status) {
    return status == 200 ? "OK" : status == 404 ? "Not Found" : status == 405 ? "Method Not Allowed" : "Bad Request";
}

void serve_one(int file, const std::function<http_answer(const std::string &)> & answer) {
    int turns = 2000 / turn_ms; // of silence
    std::string request;
    while (request.find("\r\n\r\n") == std::string::npos && request.size() < most_head &&
           receive(file, request, [&] { return --turns > 0; })) {
    }
    const size_t space = request.find(' '), end = request.find(' ', space + 1);
    http_answer reply{400, "expected GET\n"};
    if (space != std::string::npos && end != std::string::npos && end < request.find('\r')) {
        const std::string path = request.substr(space + 1, end - space - 1);
        reply =
            request.compare(0, space, "GET") == 0 ? answer(path.substr(0, path.find('?'))) : http_answer{405, "expected GET\n"};
    }
    send_all(file, fmt::format("HTTP/1.1 {} {}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: "
                               "{}\r\nConnection: close\r\n\r\n",
                               reply.status, meaning(reply.status), reply.body.size()) +
                       reply.body);
}

} // namespace

http_answer ask_loopback(int port, const std::string & path, const std::string & body,
                         const std::function<bool()> & is_worth_it) {
    const socket_file s{socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    const sockaddr_in address = loopback_address(port);
    if (s.file < 0 || connect(s.file, reinterpret_cast<const sockaddr *>(&address), sizeof(address)) != 0) return {};
    const std::string head = body.empty() ? fmt::format("GET {} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", path)
                                          : fmt::format("POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: "
                                                        "close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                                                        path, body.size());
    if (!send_all(s.file, head + body)) return {};
    std::string text;
    while (receive(s.file, text, is_worth_it)) {
    }
    const size_t end = text.find("\r\n\r\n");
    if (end == std::string::npos || text.rfind("HTTP/1.", 0) != 0 || text.size() < 12) return {};
    const bool is_chunked = lower(text.substr(0, end)).find("transfer-encoding: chunked") != std::string::npos;
    return {std::atoi(text.c_str() + 9), is_chunked ? without_chunks(text.substr(end + 4)) : text.substr(end + 4)};
}

int free_loopback_port() {
    const socket_file s{socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    const sockaddr_in address = loopback_address(0);
    return bind(s.file, reinterpret_cast<const sockaddr *>(&address), sizeof(address)) == 0 ? port_of(s.file) : 0;
}

bool serve_loopback(int port, const std::function<http_answer(const std::string &)> & answer,
                    const std::function<void(int)> & ready, std::string & complaint) {
    const socket_file listener{socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    const int yes = 1;
    setsockopt(listener.file, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    const sockaddr_in address = loopback_address(port);
    if (bind(listener.file, reinterpret_cast<const sockaddr *>(&address), sizeof(address)) != 0 ||
        listen(listener.file, 8) != 0) {
        complaint = fmt::format("port {} of 127.0.0.1: {}", port, std::strerror(errno));
        return false;
    }
    ready(port_of(listener.file));
    while (!was_interrupted()) {
        pollfd waiting{listener.file, POLLIN, 0};
        if (poll(&waiting, 1, 200) <= 0) continue;
        const socket_file connection{accept4(listener.file, nullptr, nullptr, SOCK_CLOEXEC)};
        if (connection.file >= 0) serve_one(connection.file, answer);
    }
    return true;
}

} // namespace alloy::tool
