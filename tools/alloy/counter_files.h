// The files that running plugins publish (base/counters.h), read with distrust: they may be cut short, foreign or left over.
#pragma once
#include "base/counters.h"

#include <memory>
#include <string>
#include <vector>

namespace alloy::tool {

struct counter_file {
    std::string path;
    std::unique_ptr<counter_block> block; // texts are terminated and printable
};

enum class counter_file_state { good, being_made, foreign, dead };

// `dead`: the process that made it is gone, or its number belongs to a younger process. `why` is one line unless `good`.
counter_file_state read_counter_file(const std::string & path, counter_file & file, std::string & why);

// Every good file in the folder, by process number. Those of dead processes are removed; `complaints` gets a line for each
// foreign one.
std::vector<counter_file> read_counter_files(const std::string & folder, std::vector<std::string> & complaints);

} // namespace alloy::tool
