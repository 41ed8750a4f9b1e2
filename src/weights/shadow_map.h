// The inverse of a host repacking, found by asking the host instead of copying its layouts.
//
// Every repacking that only moves bits (all of ggml's REPACK types) is  packed[p(i)] = plain[i] xor c[i]  on the bits of one strip
// of `rows` rows times one block. The permutation p is read off about 20 repackings of a small tensor: in the j-th, input bit i
// carries bit j of its own index, so output bit o spells the index it came from. A last repacking of random bytes must then be
// predicted exactly; a layout that computes (AMX) fails this and has no inverse here.
#pragma once
#include "host/abi_v3.h"
#include <cstddef>
#include <cstdint>
#include <vector>

namespace alloy::weights {

class shadow_map {
  public:
    // For the layout that `type` (a repacking buffer type) gives to tensors like `like`. valid() says whether there is an inverse.
    shadow_map(host::buffer_type * type, const host::tensor & like);

    bool valid() const { return rows_ > 0; }
    int64_t rows() const { return rows_; } // of one strip

    // Plain bytes of rows [first, first + rows()) of a 2-D matrix with `blocks` blocks a row, from its packed bytes.
    //   packed: the whole matrix; plain: [rows()][blocks * block bytes]
    void unpack_strip(const uint8_t * packed, int64_t first, int64_t blocks, uint8_t * plain) const;

  private:
    size_t block_bytes_ = 0;
    int64_t rows_ = 0;
    std::vector<uint32_t> source_bit_; // [bits of a strip of one block] output bit -> input bit
    std::vector<uint8_t> constant_;    // [bytes] what zero input gives
};

} // namespace alloy::weights
