// Where libggml-alloy.so is, and what version it has.
#pragma once
#include <string>

namespace alloy::tool {

// `asked` (--plugin) or the file that belongs to this program: beside it or in ../lib. Returns false and one line when there is
// none.
bool find_plugin(const std::string & asked, std::string & path, std::string & complaint);

// "0.1.0", read from the file without loading it; empty when it is no ggml-alloy.
std::string plugin_version(const std::string & path);

} // namespace alloy::tool
