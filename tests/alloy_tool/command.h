// Runs `alloy` as a user would and keeps what it said.
#pragma once
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace alloy::test {

struct finished {
    int code = -1; // exit code; -1 when ended by a signal
    int signal = 0;
    std::string out;
    std::string err;
    double seconds = 0;
};

using environment = std::map<std::string, std::string>;

// The variables that steer alloy and hosts are cleared first, then `set` is applied.
finished run_command(const std::vector<std::string> & command, const environment & set = {});
finished run_alloy(std::vector<std::string> arguments, const environment & set = {});

// Goes on beside the test, its output thrown away. Returns its process number; ended_with() waits and tells the exit code.
int start_alloy(std::vector<std::string> arguments, const environment & set = {});
int ended_with(int process);

bool has(const std::string & text, const std::string & part);
std::string contents(const std::filesystem::path & path); // of a file; empty when there is none

// A folder that goes with the object.
struct temporary_folder {
    std::filesystem::path path;
    temporary_folder();
    ~temporary_folder();
    temporary_folder(const temporary_folder &) = delete;
    temporary_folder & operator=(const temporary_folder &) = delete;
    std::string write(const std::string & name, const std::string & bytes) const; // returns the file's path
};

// Made by CMakeLists.txt.
std::string fake_host(const std::string & kind); // folder: "run_time", "linked_in", "static"
std::string fake_plugin();

} // namespace alloy::test
