// The table of include/ggml-alloy.h.
#pragma once
#include "ggml-alloy.h"

namespace alloy::plugin {

const ggml_alloy_api * ggml_alloy_get_api(uint32_t version);

} // namespace alloy::plugin
