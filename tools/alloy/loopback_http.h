// The little HTTP that is needed on 127.0.0.1: questions to a llama-server of our own, and one page of text for a metrics
// collector. (Debian's cpp-httplib is a shared library that brings OpenSSL and Brotli along; `alloy` is to need nothing that the
// plugin does not need.)
#pragma once
#include <functional>
#include <string>

namespace alloy::tool {

struct http_answer {
    int status = 0; // 0: nobody answered
    std::string body;
};

// GET without a body, else POST of JSON. Waits as long as it takes, but not beyond ^C, and while `is_worth_it` says so (asked
// five times a second; null: always).
http_answer ask_loopback(int port, const std::string & path, const std::string & body = {},
                         const std::function<bool()> & is_worth_it = nullptr);

int free_loopback_port();

// Answers GET until ^C, one connection after another, on 127.0.0.1 only. `answer` gets the path. Returns false and one line when
// the port cannot be had. `ready` is called once, with the port (which is chosen by the system for 0).
bool serve_loopback(int port, const std::function<http_answer(const std::string & path)> & answer,
                    const std::function<void(int port)> & ready, std::string & complaint);

} // namespace alloy::tool
