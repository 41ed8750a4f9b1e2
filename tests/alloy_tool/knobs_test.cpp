// docs/knobs.md is what `alloy knobs --markdown` prints now.
#include "command.h"

#include "base/options.h"

#include <fstream>
#include <sstream>

#include <gtest/gtest.h>

namespace alloy::test {
namespace {

TEST(knobs, page_is_up_to_date) {
    std::ifstream file(ALLOY_KNOBS_PAGE);
    std::ostringstream page;
    page << file.rdbuf();
    EXPECT_EQ(run_alloy({"knobs", "--markdown"}).out, page.str()) << "make it anew: alloy knobs --markdown > docs/knobs.md";
}

TEST(knobs, every_knob_with_its_value) {
    const finished result = run_alloy({"knobs"}, {{"GGML_ALLOY_PLAN", "1"}, {"GGML_ALLOY", "maybe"}});
    EXPECT_EQ(result.code, 0);
    for (int i = 0; i < static_cast<int>(option::count); i++)
        EXPECT_TRUE(has(result.out, info_of(static_cast<option>(i)).variable));
    EXPECT_TRUE(has(result.out, "* GGML_ALLOY_PLAN")) << result.out;
    EXPECT_TRUE(has(result.out, "wrong: GGML_ALLOY: got 'maybe'")) << result.out;
}

} // namespace
} // namespace alloy::test
