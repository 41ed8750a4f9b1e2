// alloy doctor: would the plugin be used, by which host, and if not, why not.
#include "doctor.h"

#include "commands.h"
#include "plugin_file.h"

#include <cstdio>
#include <cstdlib>

namespace alloy::tool {

int doctor(const doctor_options & options) {
    diagnosis found;
    found.knobs = read_knobs();
    found.here = look_at_machine();
    if (find_plugin(options.plugin, found.plugin, found.plugin_complaint)) found.plugin_version = plugin_version(found.plugin);
    if (const char * path = std::getenv("GGML_BACKEND_PATH")) found.backend_path = path;

    for (const llama_host & target : find_hosts(options.hosts, found.complaints)) {
        const bool loadable = target.style != link_style::fully_static;
        const probe_result probe =
            loadable ? probe_host(target, found.plugin_complaint.empty() ? found.plugin : "") : probe_result{};
        verdict result = judge(target, probe, found.plugin, found.knobs);
        if (!found.plugin_complaint.empty()) result = {outcome::refused, found.plugin_complaint};
        found.hosts.push_back({target, probe, result});
    }
    // Asked about certain hosts, all must be right; on PATH only the one that a plain command would start.
    found.is_good = found.complaints.empty() && !found.hosts.empty();
    for (size_t i = 0; i < (options.hosts.empty() ? 1 : found.hosts.size()) && found.is_good; i++)
        found.is_good = found.hosts[i].result.is_good();

    std::fputs((options.json ? report_json(found) : report_text(found)).c_str(), stdout);
    return found.is_good ? exit_good : exit_bad;
}

} // namespace alloy::tool
