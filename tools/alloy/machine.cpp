#include "machine.h"

#include "base/isa.h"
#include "kernels/matmul/matmul.h"
#include "base/options.h"
#include "base/os.h"

#include <fstream>
#include <thread>

namespace alloy::tool {
namespace {

// The kernel lists all settings and puts the current one in brackets.
std::string huge_page_setting() {
    std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
    std::string line;
    std::getline(file, line);
    const size_t begin = line.find('['), end = line.find(']');
    return begin == std::string::npos || end == std::string::npos ? "unknown" : line.substr(begin + 1, end - begin - 1);
}

} // namespace

machine look_at_machine() {
    machine found;
    const isa_set cpu = isa_of_cpu();
    isa_set allowed = cpu;
    if (text_of(option::isa) != "best") isa_limited_to(text_of(option::isa), cpu, allowed);
    found.isa_found = isa_list(cpu);
    found.isa_allowed = isa_list(allowed);
    for (int i = 0; i < static_cast<int>(weight_type::count); i++) {
        if (find_matmul(static_cast<weight_type>(i), allowed) == nullptr) continue;
        found.packed_weights += (found.packed_weights.empty() ? "" : " ") + std::string(weight_formats[i].name);
    }
    found.cores = os::usable_cpus();
    found.cpus = static_cast<int>(std::thread::hardware_concurrency());
    found.total_memory = os::total_memory();
    found.available_memory = os::available_memory();
    found.huge_pages = huge_page_setting();
    return found;
}

} // namespace alloy::tool
