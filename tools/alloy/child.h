// Runs a host's program to its end while watching it: what it prints, the memory that it takes, what the plugin in it counts.
#pragma once
#include "base/counters.h"

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace alloy::tool {

// A folder in the system's place for temporary files that goes with the object.
struct scratch_folder {
    std::string path; // empty: it could not be made
    scratch_folder();
    ~scratch_folder();
    scratch_folder(const scratch_folder &) = delete;
    scratch_folder & operator=(const scratch_folder &) = delete;
};

// One of the two things compared. Variables that steer the plugin are the caller's on the side with the plugin, and gone on the
// other.
struct side {
    std::string name;               // "alloy", "stock -fa on", "compact"
    std::string plugin;             // empty: stock
    std::vector<std::string> flags; // behind the program's other arguments
    std::vector<std::pair<std::string, std::string>> variables;
};

struct finished_child {
    std::string out, err;
    int code = -1; // exit code; -1 when ended by a signal
    int signal = 0;
    bool stopped = false; // by us, because of ^C
    double seconds = 0;
    uint64_t peak = 0;                       // largest anonymous memory seen, bytes
    std::unique_ptr<counter_block> counters; // as the plugin left them; null: none was published

    bool is_good() const { return code == 0 && !stopped; }
    std::string ending() const;     // "exit code 1", "signal 11 (Segmentation fault)"
    std::string last_words() const; // the last line of stderr that says something
};

// `line`: each whole line of stdout as it comes, with the largest anonymous memory since the line before, in bytes. Samples taken
// right after a line are left out where others exist: what belongs to the line before may not be given back yet.
using line_watcher = std::function<void(const std::string & line, uint64_t peak)>;
finished_child run_child(const std::vector<std::string> & command, const side & as, const line_watcher & line = {});

// A program that goes on beside us (llama-server). Ended, by SIGINT and later SIGKILL, with the object.
class living_child {
public:
    living_child(const std::vector<std::string> & command, const side & as);
    ~living_child();
    living_child(const living_child &) = delete;
    living_child & operator=(const living_child &) = delete;
    bool is_alive();
    std::string ending() const { return ending_; } // "exit code 1"; empty while it is alive
    // For how long it has used no processor time to speak of (1 %: to answer "not yet" is no work). Time in which it waited for a
    // disk, or it or we were stopped, does not count. To be asked a few times a second, after begin_waiting().
    double idle_seconds();
    void begin_waiting();
    int process() const { return process_; }
    std::unique_ptr<counter_block> counters(); // now; null: none is published
    std::string log() const;

private:
    scratch_folder runtime_;
    int process_ = -1;
    int counter_file_ = -1;
    std::string ending_;
    uint64_t ticks_ = 0; // of the processor, when idleness began
    double idle_ = 0;
    std::chrono::steady_clock::time_point last_look_ = std::chrono::steady_clock::now();
};

uint64_t anonymous_bytes(int process); // 0 when it is gone

// Did the plugin compute anything with kernels of its own? (Without them on request: any graph.)
bool has_run(const counter_block & block);

// From now on ^C and SIGTERM end children, not us: whoever runs children looks at was_interrupted().
void keep_interrupts();
bool was_interrupted();

} // namespace alloy::tool
