// alloy top: what the plugin does in each running process, live on the terminal.
#include "child.h"
#include "commands.h"
#include "counter_files.h"
#include "counter_view.h"

#include "base/os.h"

#include <chrono>
#include <clocale>
#include <cstdio>
#include <map>

#define NCURSES_NOMACROS // erase() and timeout() stay functions
#include <curses.h>
#include <unistd.h>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

using clock = std::chrono::steady_clock;

struct last_look {
    clock::time_point when;
    uint64_t tokens = 0, steps = 0;
};

double mib(uint64_t bytes) { return static_cast<double>(bytes) / 1048576.0; }

// Per second since the look before; 0 at the first one.
double rate(uint64_t now, uint64_t before, double seconds) {
    return now < before || seconds <= 0 ? 0 : static_cast<double>(now - before) / seconds;
}

std::vector<std::string> lines_of(const counter_block & block, std::map<int, last_look> & looks) {
    constexpr size_t most_ops = 6;
    const auto now = clock::now();
    const auto v = [&](counter which) { return value(block, which); };
    const bool is_known = looks.count(block.process) != 0;
    last_look & before = looks[block.process];
    const double seconds = is_known ? std::chrono::duration<double>(now - before.when).count() : 0;
    const double share = own_share(block);
    std::vector<std::string> lines = {
        fmt::format("{} ({})  up {}  ggml {}  {}", block.program, block.process, duration(uptime(block)), block.host, block.isa),
        fmt::format("  tokens/s {:>10.1f}   steps/s {:>10.0f}   own share {:>6}   graphs {} ({} plans)",
                    rate(v(counter::tokens), before.tokens, seconds), rate(v(counter::kernel_steps), before.steps, seconds),
                    share < 0 ? "-" : fmt::format("{:.1f} %", 100 * share), v(counter::graphs), v(counter::plans_built)),
        fmt::format("  KV MiB: live {:.1f} of {:.1f}   sealed {:.1f}   saved {:.1f}   pages sealed {} opened {}",
                    mib(v(counter::kv_live_bytes)), mib(v(counter::kv_bytes)), mib(v(counter::kv_sealed_bytes)),
                    mib(v(counter::kv_saved_bytes)), v(counter::kv_sealed_pages), v(counter::kv_opened_pages)),
        fmt::format("  weights {:.0f} MiB (packed {:.0f})   compute {:.0f}   steps: own {}  fused {}  delegated {}",
                    mib(v(counter::weight_bytes)), mib(v(counter::packed_bytes)), mib(v(counter::compute_bytes)),
                    v(counter::kernel_steps), v(counter::fused_nodes), v(counter::delegated_nodes)),
        fmt::format("  barriers dropped {}   attention tiles: int8 {}  f32 {}   failed graphs {}", v(counter::barriers_dropped),
                    v(counter::attention_int8_tiles), v(counter::attention_f32_tiles), v(counter::failed_graphs))};
    std::string ops;
    const std::vector<op_count> delegated = delegated_ops(block);
    for (size_t i = 0; i < delegated.size() && i < most_ops; i++)
        ops += fmt::format("  {} {}", delegated[i].name, delegated[i].nodes);
    if (!ops.empty()) lines.push_back("  delegated:" + ops);
    before = {now, v(counter::tokens), v(counter::kernel_steps)};
    return lines;
}

std::vector<std::string> whole_view(std::map<int, last_look> & looks) {
    std::vector<std::string> complaints, lines;
    for (const counter_file & file : read_counter_files(os::runtime_directory(), complaints)) {
        for (const std::string & line : lines_of(*file.block, looks)) lines.push_back(line);
        lines.emplace_back();
    }
    if (lines.empty()) lines.emplace_back("No process uses the plugin now.");
    return lines;
}

void draw(const std::vector<std::string> & lines) {
    erase();
    attron(A_REVERSE);
    mvaddnstr(0, 0, fmt::format("{:<{}}", "alloy top   q: quit", COLS).c_str(), COLS);
    attroff(A_REVERSE);
    for (int i = 0; i < static_cast<int>(lines.size()) && i + 1 < LINES; i++) {
        const bool is_head = !lines[static_cast<size_t>(i)].empty() && lines[static_cast<size_t>(i)][0] != ' ';
        if (is_head) attron(A_BOLD);
        mvaddnstr(i + 1, 0, lines[static_cast<size_t>(i)].c_str(), COLS);
        if (is_head) attroff(A_BOLD);
    }
    refresh();
}

} // namespace

int top(const top_options & options) {
    std::map<int, last_look> looks;
    if (options.once) {
        for (const std::string & line : whole_view(looks)) std::puts(line.c_str());
        return exit_good;
    }
    if (isatty(STDIN_FILENO) == 0 || isatty(STDOUT_FILENO) == 0) {
        std::fputs("alloy top: no terminal, expected one; --once prints a single look, `alloy status --watch` goes on\n", stderr);
        return exit_usage;
    }
    keep_interrupts();
    std::setlocale(LC_ALL, "");
    SCREEN * screen = newterm(nullptr, stdout, stdin);
    if (screen == nullptr) {
        std::fputs("alloy top: this terminal cannot be drawn on, expected another TERM\n", stderr);
        return exit_usage;
    }
    cbreak();
    noecho();
    curs_set(0);
    timeout(static_cast<int>(options.interval * 1000));
    for (int key = 0; key != 'q' && !was_interrupted(); key = getch()) draw(whole_view(looks));
    endwin();
    delscreen(screen);
    return exit_good;
}

} // namespace alloy::tool
