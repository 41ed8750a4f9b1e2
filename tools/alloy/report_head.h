// What every saved report says about where its figures come from.
#pragma once
#include "base/counters.h"

#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

namespace alloy::tool {

// Processor, cores, memory, instruction sets, system.
nlohmann::ordered_json machine_json();

// The host that a report is about: name of the program, what it calls its own version, its ggml's version. What cannot be learnt
// is left out: programs before 2025 have no --version, and a script shows no libggml; then what the plugin saw, if it ran.
nlohmann::ordered_json host_json(const std::string & program, const counter_block * counters);

// What the plugin counted, by the counters' names.
nlohmann::ordered_json counters_json(const counter_block & block);

// GGML_ALLOY* variables of this process that differ from their defaults: the side with the plugin runs under them.
nlohmann::ordered_json settings_json(const std::vector<std::pair<std::string, std::string>> & extra);

std::string now_utc();                      // "2026-11-28T08:30:00Z"
std::string stem(const std::string & path); // file name without folder: reports are published, folders are private

// Writes beside the file and renames, so that a report is whole or absent. Returns false and one line.
bool write_file(const std::string & path, const std::string & bytes, std::string & complaint);

// Can a file be made there? Asked before hours of measuring. Returns false and one line.
bool can_write(const std::string & path, std::string & complaint);

} // namespace alloy::tool
