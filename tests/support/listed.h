// One row of a family's kernels.inc, for its test and its benchmark.
#pragma once
#include "base/isa.h"

namespace alloy::test {

template <class Op, class Kernel> struct listed {
    Op op;
    isa token;
    const char * name;
    Kernel run;
};

} // namespace alloy::test
