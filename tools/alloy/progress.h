// How far a long measurement is, on stderr: one line that changes on a terminal, one line a step elsewhere.
#pragma once
#include <chrono>
#include <map>
#include <string>

namespace alloy::tool {

class progress {
public:
    explicit progress(std::string command);
    // `times` steps of each kind lie ahead. What a kind takes is learnt from its finished steps.
    void expect(const std::string & kind, int times);
    void forget(const std::string & kind);
    void start(const std::string & what, const std::string & kind);
    void finish(const std::string & kind, double seconds);
    void end(); // clears the line
private:
    std::string command_;
    bool is_terminal_;
    std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
    struct kind_of_step {
        int ahead = 0, done = 0;
        double seconds = 0; // of all that are done
    };
    std::map<std::string, kind_of_step> kinds_;
    std::string eta() const;
};

std::string clock_text(double seconds); // "1:05", "2:00:05"

} // namespace alloy::tool
