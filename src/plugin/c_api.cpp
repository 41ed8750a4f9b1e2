#include "plugin/c_api.h"

#include "base/counters.h"

namespace alloy::plugin {
namespace {

bool known(size_t index) { return index < static_cast<size_t>(num_counters); }

size_t counter_count() { return num_counters; }
const char * counter_name(size_t index) { return known(index) ? info_of(static_cast<counter>(index)).name : nullptr; }
const char * counter_unit(size_t index) { return known(index) ? info_of(static_cast<counter>(index)).unit : nullptr; }
uint64_t counter_value(size_t index) { return known(index) ? value_of(static_cast<counter>(index)) : 0; }

constexpr ggml_alloy_api api = {GGML_ALLOY_API_VERSION, ALLOY_VERSION, counter_count, counter_name, counter_unit, counter_value};

} // namespace

const ggml_alloy_api * ggml_alloy_get_api(uint32_t version) { return version <= GGML_ALLOY_API_VERSION ? &api : nullptr; }

} // namespace alloy::plugin
