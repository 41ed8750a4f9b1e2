// alloy quality: what the plugin's modes change in what a model says, against stock with an f16 cache. Each step's result is kept
// in a folder until all is done, so that the same command goes on where it was stopped.
#include "child.h"
#include "commands.h"
#include "gguf_info.h"
#include "host.h"
#include "knobs.h"
#include "plugin_file.h"
#include "probes.h"
#include "progress.h"
#include "quality_report.h"
#include "report_head.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <fmt/format.h>

namespace alloy::tool {
namespace {

using json = nlohmann::ordered_json;
using texts = std::vector<std::string>;
namespace fs = std::filesystem;

struct refused {
    std::string why; // one line
    int code = exit_usage;
};
struct stopped {};

struct quality_run {
    quality_options options;
    std::string perplexity, server, plugin;
    texts device_flags;
    std::string folder, base; // of kept steps; stock's logits
    progress told{"alloy quality"};
    json report = json::object();
};

// --- what is kept
// ---------------------------------------------------------------------------------------------------------------
std::string hash(const std::string & text) { // FNV-1a
    uint64_t value = 1469598103934665603ULL;
    for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
    return fmt::format("{:016x}", value);
}

// Another file of the same name is another file.
std::string identity(const std::string & path) {
    struct stat info {};
    std::error_code error;
    stat(path.c_str(), &info);
    return fmt::format("{} {} {}.{}", fs::absolute(path, error).string(), info.st_size, info.st_mtim.tv_sec,
                       info.st_mtim.tv_nsec);
}

std::string default_folder() {
    const char * cache = std::getenv("XDG_CACHE_HOME");
    const char * home = std::getenv("HOME");
    return cache != nullptr && *cache != 0 ? std::string(cache) + "/ggml-alloy/quality-runs"
                                           : std::string(home != nullptr ? home : "/tmp") + "/.cache/ggml-alloy/quality-runs";
}

// A step that was finished before is not done again. What it depends on beside the folder's own circumstances is in `key`.
template <class F> json step(quality_run & run, const std::string & name, const std::string & key, F && measure) {
    const std::string path = run.folder + "/" + hash(name + "\n" + key) + ".json";
    std::ifstream file(path);
    const json kept = file ? json::parse(file, nullptr, false) : json();
    if (kept.is_object() && kept.contains("result")) {
        run.told.forget(name);
        return kept["result"];
    }
    if (was_interrupted()) throw stopped{};
    run.told.start(name, name);
    const auto started = std::chrono::steady_clock::now();
    const json result = measure();
    run.told.finish(name, std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count());
    std::string complaint;
    if (!write_file(path, json{{"name", name}, {"result", result}}.dump(), complaint)) throw refused{complaint, exit_bad};
    return result;
}

// --- before anything starts
// -------------------------------------------------------------------------------------------------------
bool is_stock_type(const std::string & preset) { return preset.rfind("stock-", 0) == 0 && preset.size() > 6; }

void check_preset(const std::string & preset) {
    if (is_stock_type(preset)) return;
    const char * before = std::getenv("GGML_ALLOY_KV");
    const std::string kept = before != nullptr ? before : "";
    setenv("GGML_ALLOY_KV", preset.c_str(), 1);
    std::string complaint;
    for (const knob & knob : read_knobs()) {
        if (std::strcmp(knob.info->variable, "GGML_ALLOY_KV") == 0) complaint = knob.complaint;
    }
    before != nullptr ? setenv("GGML_ALLOY_KV", kept.c_str(), 1) : unsetenv("GGML_ALLOY_KV");
    if (!complaint.empty()) throw refused{fmt::format("--preset {}: {}", preset, complaint)};
}

uint64_t free_bytes(fs::path folder) {
    std::error_code error;
    folder = fs::absolute(folder, error);
    while (!fs::exists(folder, error) && folder.has_parent_path() && folder != folder.parent_path())
        folder = folder.parent_path();
    struct statvfs info {};
    return statvfs(folder.c_str(), &info) == 0 ? static_cast<uint64_t>(info.f_bavail) * info.f_frsize : 0;
}

std::string gib(uint64_t bytes) { return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / 1073741824.0); }

// The only thing of size that is written; said before it is.
void announce_disk(const quality_run & run, uint64_t vocabulary, uint64_t text_bytes) {
    std::error_code error;
    if (fs::exists(run.base, error)) {
        fmt::print(stderr, "alloy quality: goes on with what {} holds ({})\n", run.folder, gib(fs::file_size(run.base, error)));
        return;
    }
    // A token is a byte at least, so that a short text bounds the chunks too.
    const uint64_t context = static_cast<uint64_t>(run.options.context),
                   chunks = std::min(static_cast<uint64_t>(run.options.chunks), text_bytes / context + 1);
    const uint64_t needed = base_file_bytes(vocabulary, context, chunks), there = free_bytes(run.folder);
    if (needed + needed / 50 > there)
        throw refused{
            fmt::format("{}: {} free, expected {} for stock's logits; --state DIR, fewer --chunks or a smaller --context",
                        run.folder, gib(there), gib(needed))};
    fmt::print(stderr, "alloy quality: up to {} of disk for stock's logits in {}, removed at the end ({} free)\n", gib(needed),
               run.folder, gib(there));
}

std::string whole_file(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

void prepare(quality_run & run) {
    quality_options & o = run.options;
    std::string complaint;
    std::error_code error;
    gguf_info model;
    if (o.model.empty() || o.text.empty()) throw refused{"expected -m MODEL and -f TEXT"};
    if (!is_model_file(o.model, complaint) || !read_gguf_info(o.model, model, complaint)) throw refused{"-m: " + complaint};
    const uint64_t text_bytes = fs::is_regular_file(o.text, error) ? fs::file_size(o.text, error) : 0;
    if (std::ifstream file(o.text); !file || !fs::is_regular_file(o.text, error))
        throw refused{fmt::format("-f: {}: no such file, or not readable", o.text)};
    if (text_bytes < 2 * static_cast<uint64_t>(o.context))
        throw refused{
            fmt::format("-f: {}: {} bytes, expected at least two contexts of {} tokens", o.text, text_bytes, o.context)};
    for (const std::string & preset : o.presets) check_preset(preset);
    if (!find_host_program(o.host, "llama-perplexity", run.perplexity, run.device_flags, complaint)) throw refused{complaint};
    if (!o.without_probes && !find_host_program(o.host, "llama-server", run.server, run.device_flags, complaint))
        throw refused{complaint + "; --no-probes does without"};
    if (!find_plugin(o.plugin, run.plugin, complaint)) throw refused{complaint};
    for (const std::string & path : {o.html, o.save}) {
        if (!path.empty() && !can_write(path, complaint)) throw refused{complaint};
    }
    run.report["notes"] = json::array();
    const int64_t scored = static_cast<int64_t>(o.chunks) * (o.context - 1 - o.context / 2);
    constexpr int least_scored = 100; // below, llama-perplexity tells no statistics
    if (scored < least_scored)
        throw refused{fmt::format("--context {} --chunks {}: {} tokens would be scored, expected at least {}", o.context,
                                  o.chunks, scored, least_scored)};
    if (model.is_quantised())
        run.report["notes"].push_back("the weights are quantised: whatever changes a sum's order re-rolls the rounding of 8-bit "
                                      "activations, in stock's own "
                                      "kernels too, and shows here; the gates are meant for weights in f32 or f16");
    std::erase_if(o.lengths, [&](int length) {
        const bool is_long = model.trained_context > 0 && static_cast<uint64_t>(length) > model.trained_context;
        if (is_long)
            run.report["notes"].push_back(
                fmt::format("no probe of {} tokens: the model was trained for {}", length, model.trained_context));
        return is_long;
    });
    const std::string circumstances = fmt::format("{}\n{}\n{}\n{} {} {}", identity(o.model), identity(o.text),
                                                  identity(run.perplexity), o.context, o.chunks, o.ubatch);
    run.folder = (o.state.empty() ? default_folder() : o.state) + "/" + hash(circumstances);
    run.base = run.folder + "/base.logits";
    announce_disk(run, model.vocabulary, text_bytes);
    if (!fs::create_directories(run.folder, error) && error) throw refused{fmt::format("{}: {}", run.folder, error.message())};
}

// --- steps
// --------------------------------------------------------------------------------------------------------------------------
side side_of(const quality_run & run, const std::string & preset) {
    if (preset == "stock") return {"stock", "", {}, {}};
    if (is_stock_type(preset)) return {preset, "", {"-fa", "on", "-ctk", preset.substr(6), "-ctv", preset.substr(6)}, {}};
    return {preset, run.plugin, run.device_flags, {{"GGML_ALLOY_KV", preset}}};
}

// Of the plugin's own results only those of the same plugin and knobs count again.
std::string key_of(const quality_run & run, const side & as) {
    return as.plugin.empty() ? as.name
                             : fmt::format("{} {} {}", as.name, identity(run.plugin), settings_json(as.variables).dump());
}

json counters_of(const side & as, const std::unique_ptr<counter_block> & counters) {
    if (as.plugin.empty()) return json();
    if (!counters || !has_run(*counters))
        throw refused{fmt::format("{}: the plugin took no part, so nothing is reported; `alloy doctor` says why", as.name),
                      exit_bad};
    return counters_json(*counters);
}

finished_child run_perplexity(const quality_run & run, const side & as, const texts & more) {
    const std::string context = std::to_string(run.options.context);
    texts command = {
        run.perplexity, "-m", run.options.model, "-c", context, "-b", context, "-ub", std::to_string(run.options.ubatch)};
    command.insert(command.end(), more.begin(), more.end());
    finished_child child = run_child(command, as);
    if (child.stopped) throw stopped{};
    if (!child.is_good())
        throw refused{fmt::format("{}: llama-perplexity ended with {}: {}", as.name, child.ending(), child.last_words()),
                      exit_bad};
    return child;
}

json base_step(const quality_run & run) {
    const std::string part = run.base + ".part";
    std::error_code error;
    try {
        const finished_child child = run_perplexity(
            run, side_of(run, "stock"),
            {"-f", run.options.text, "--chunks", std::to_string(run.options.chunks), "--kl-divergence-base", part});
        double ppl = 0;
        std::string complaint;
        if (!parse_perplexity(child.out + child.err, ppl, complaint)) throw refused{"stock: " + complaint, exit_bad};
        fs::rename(part, run.base, error);
        if (error) throw refused{fmt::format("{}: {}", part, error.message()), exit_bad};
        return {{"ppl", ppl}, {"seconds", child.seconds}};
    } catch (...) {
        fs::remove(part, error); // half a base is of no use
        throw;
    }
}

json divergence_step(const quality_run & run, const side & as) {
    const finished_child child = run_perplexity(run, as, {"--kl-divergence", "--kl-divergence-base", run.base});
    divergence found;
    std::string complaint;
    if (!parse_divergence(child.out + child.err, found, complaint)) throw refused{as.name + ": " + complaint, exit_bad};
    return {{"divergence", to_json(found)},
            {"counters", counters_of(as, child.counters)},
            {"peak", child.peak},
            {"seconds", child.seconds}};
}

json probe_step(const quality_run & run, const side & as) {
    const int longest = run.options.lengths.empty()
                            ? 1024
                            : std::max(1024, *std::max_element(run.options.lengths.begin(), run.options.lengths.end()));
    try {
        llama_server server(run.server, run.options.model,
                            {"-c", std::to_string(longest), "-ub", std::to_string(run.options.ubatch)}, as, run.options.patience);
        // As much of the text as the longest document needs, whatever a token is.
        const std::string text = whole_file(run.options.text).substr(0, 12 * static_cast<size_t>(longest));
        const token_list filler = server.tokenize(text);
        json recalled = json::array(), left_out = json::array();
        for (const int length : run.options.lengths) {
            if (filler.size() < static_cast<size_t>(length)) left_out.push_back(length);
            if (filler.size() < static_cast<size_t>(length)) continue;
            for (const json & question : recall(server, filler, words_of(text), length, run.options.documents))
                recalled.push_back(question);
        }
        const json greedy = greedy_texts(server, filler);
        counters_of(as, server.counters());
        return {{"recall", recalled}, {"greedy", greedy}, {"left_out", left_out}};
    } catch (const std::runtime_error & error) {
        if (was_interrupted()) throw stopped{};
        throw refused{fmt::format("{}: {}", as.name, error.what()), exit_bad};
    }
}

void measure_divergence(quality_run & run, const std::string & name, bool is_reference) {
    const side as = side_of(run, name);
    json mode = {{"name", name}};
    if (is_reference) mode["reference"] = true;
    mode.update(step(run, name + ": divergence", key_of(run, as), [&] { return divergence_step(run, as); }));
    const json & counters = mode["counters"];
    if (counters.is_object() && name != "exact" && counters["kv_sealed_pages"] == 0)
        run.report["notes"].push_back(
            name + ": no page of the cache was sealed, so nothing lossy was tested; a longer --context is needed");
    run.report["modes"].push_back(mode);
}

void measure_probes(quality_run & run) {
    const std::string key =
        fmt::format(" {} {} {}", identity(run.server), fmt::join(run.options.lengths, ","), run.options.documents);
    const side stock = side_of(run, "stock");
    const json theirs = step(run, "stock: probes", key, [&] { return probe_step(run, stock); });
    run.report["stock_recall"] = theirs["recall"];
    run.report["stock_greedy"] = theirs["greedy"];
    for (const json & length : theirs["left_out"])
        run.report["notes"].push_back(fmt::format("no probe of {} tokens: the text has fewer", length.get<int>()));
    for (json & mode : run.report["modes"]) {
        if (mode.contains("reference")) continue;
        const side as = side_of(run, mode["name"]);
        mode.update(step(run, as.name + ": probes", key_of(run, as) + key, [&] { return probe_step(run, as); }));
    }
}

// Modes of stock that a gate compares with and that nobody asked for.
texts references_of(const quality_options & options) {
    const bool leaves_out = evicts(settings_json({}));
    texts list;
    for (const std::string & preset : options.presets) {
        const std::string reference = gate_of(preset, leaves_out).reference;
        const auto is_in = [&](const texts & names) { return std::find(names.begin(), names.end(), reference) != names.end(); };
        if (!reference.empty() && !is_in(options.presets) && !is_in(list)) list.push_back(reference);
    }
    return list;
}

void expect_steps(quality_run & run, const texts & references) {
    texts names = {"stock: logits", "stock: floor"};
    if (!run.options.without_probes) names.emplace_back("stock: probes");
    for (const std::string & preset : run.options.presets) {
        names.push_back(preset + ": divergence");
        if (!run.options.without_probes) names.push_back(preset + ": probes");
    }
    for (const std::string & name : references) names.push_back(name + ": divergence");
    for (const std::string & name : names) run.told.expect(name, 1);
}

void measure_all(quality_run & run) {
    texts references = references_of(run.options);
    if (run.options.without_references) {
        for (const std::string & name : references)
            run.report["notes"].push_back("gates do not compare with " + name + ", which was not measured");
        references.clear();
    } else if (!references.empty()) {
        fmt::print(stderr, "alloy quality: {} will be measured too, for the gates; --no-references does without\n",
                   fmt::join(references, ", "));
    }
    expect_steps(run, references);
    std::error_code error;
    if (!fs::exists(run.base, error)) fs::remove(run.folder + "/" + hash("stock: logits\n") + ".json", error);
    const side stock = side_of(run, "stock");
    run.report["modes"] = json::array();
    run.report["base_ppl"] = step(run, "stock: logits", "", [&] { return base_step(run); })["ppl"];
    run.report["floor"] = step(run, "stock: floor", "", [&] { return divergence_step(run, stock); })["divergence"];
    for (const std::string & preset : run.options.presets) measure_divergence(run, preset, false);
    for (const std::string & name : references) measure_divergence(run, name, true);
    if (!run.options.without_probes) measure_probes(run);
}

void tell(const quality_options & options, const json & report) {
    const std::string saved = report.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
    std::fputs((options.json ? saved : options.csv ? quality_csv(report) : quality_table(report)).c_str(), stdout);
    std::string complaint;
    if (!options.save.empty() && !write_file(options.save, saved, complaint)) throw refused{complaint, exit_bad};
    if (!options.html.empty() && !write_file(options.html, quality_page(report), complaint)) throw refused{complaint, exit_bad};
}

json read_saved(const std::string & path) {
    std::ifstream file(path);
    if (!file) throw refused{path + ": not readable"};
    json report = json::parse(file, nullptr, false);
    if (!report.is_object() || report.value("report", "") != "alloy quality" || report.value("format", 0) != 1)
        throw refused{path + ": expected a report that `alloy quality --json` wrote"};
    return report;
}

bool keeps_gates(const json & report) {
    for (const json & mode : report["modes"]) {
        for (const json & gate : mode["gates"]) {
            if (gate["result"] == "fail") return false;
        }
    }
    return true;
}

int quality_or_refuse(const quality_options & options) {
    if (!options.from.empty()) {
        try {
            tell(options, read_saved(options.from));
        } catch (const json::exception & error) {
            throw refused{fmt::format("{}: {}", options.from, error.what())};
        }
        return exit_good;
    }
    quality_run run{options, {}, {}, {}, {}, {}, {}};
    prepare(run);
    keep_interrupts();
    json head = {{"report", "alloy quality"},
                 {"format", 1},
                 {"date", now_utc()},
                 {"version", ALLOY_VERSION},
                 {"plugin", plugin_version(run.plugin)},
                 {"host", host_json(run.perplexity, nullptr)},
                 {"model", {{"file", stem(options.model)}}},
                 {"text", stem(options.text)},
                 {"context", options.context},
                 {"chunks", options.chunks},
                 {"ubatch", options.ubatch},
                 {"lengths", run.options.lengths},
                 {"documents", options.documents},
                 {"settings", settings_json({})},
                 {"machine", machine_json()},
                 {"complete", true}};
    int code = exit_good;
    std::string why;
    try {
        measure_all(run);
    } catch (const stopped &) {
        code = exit_interrupted;
        why = "stopped";
    } catch (const refused & failed) {
        code = failed.code;
        why = failed.why;
    }
    run.told.end();
    head.update(run.report);
    if (!why.empty()) {
        fmt::print(stderr, "alloy quality: {}; the same command goes on from here, {} keeps what is done\n", why, run.folder);
        head["complete"] = false;
        head["notes"].push_back("ended early: " + why);
    }
    std::error_code error;
    if (head.contains("floor")) {
        judge_modes(head);
        tell(options, head);
    } else if (!fs::exists(run.base, error)) {
        fs::remove_all(run.folder, error); // nothing was finished
    }
    if (code == exit_good && !options.keep) fs::remove_all(run.folder, error);
    return code != exit_good ? code : keeps_gates(head) ? exit_good : exit_bad;
}

} // namespace

int quality(const quality_options & options) {
    try {
        return quality_or_refuse(options);
    } catch (const refused & why) {
        fmt::print(stderr, "alloy quality: {}\n", why.why);
        return why.code;
    }
}

} // namespace alloy::tool
