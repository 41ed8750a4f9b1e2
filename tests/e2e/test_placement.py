"""Where weights, cache and graph splits land for the flags that users combine, and that no combination changes the text."""
import dataclasses

import harness
from harness import alloy, complete, delegated, model, stock

LAYERS_OF_SMOLLM2 = 30


@dataclasses.dataclass
class Cell:
    flags: str = ""
    splits: range = range(1, 2)
    weights: bool = True   # some of the model's weights are with us
    cache: bool = True     # some of the KV cache is with us
    flash: bool = True


class Placement(harness.HostTest):
    def check(self, name: str, cell: Cell, **knobs: str):
        with self.subTest(model=name, flags=cell.flags):
            flags = tuple(cell.flags.split())
            expected = complete(model(name), stock(), flags=flags)
            self.assert_ran(expected)
            self.assert_stock(expected)
            result = complete(model(name), delegated(**knobs), flags=flags)
            self.assert_ran(result)
            self.assert_same_text(result.out, expected.out)
            self.check_log(result, expected, cell)

    def check_log(self, result, expected, cell: Cell):
        self.assertIn("loaded ALLOY backend", result.text)
        self.assertIn(result.splits, cell.splits)
        self.assertEqual(result.flash_attention, cell.flash)
        self.assertEqual(result.flash_attention, expected.flash_attention)
        self.assertEqual(result.buffer_mib("ALLOY0", "model") > 0, cell.weights)
        self.assertEqual(result.buffer_mib("ALLOY0", "KV") > 0, cell.cache)
        self.assertEqual(result.plans > 0, cell.weights)
        self.assertEqual(result.alloy_complaints, [])
        self.assertEqual(result.host_complaints, expected.host_complaints)

    def test_no_flags(self):
        for name in ("smollm2", "gemma3", "llama-q4_0", "qwen3", "qwen3moe"):
            self.check(name, Cell())

    def test_no_flags_with_own_kernels(self):
        for name in ("smollm2", "gemma3", "qwen3", "qwen3moe"):
            with self.subTest(model=name):
                expected = complete(model(name), stock(), tokens=4)
                result = complete(model(name), alloy(), tokens=4)
                self.assert_ran(result)
                self.assert_used(result)
                self.assertGreater(result.kernel_steps, 0)
                self.check_log(result, expected, Cell())

    def test_layers_left_to_the_host(self):
        self.check("smollm2", Cell("-ngl 0", weights=False, cache=False))
        for name in ("smollm2", "gemma3"):
            self.check(name, Cell("-ngl 10", splits=range(2, 4)))

    def test_no_device(self):
        for name in ("smollm2", "gemma3"):
            self.check(name, Cell("-dev none", weights=False, cache=False))

    def test_cache_in_host_memory(self):
        for name in ("smollm2", "gemma3", "qwen3moe"):
            self.check(name, Cell("-nkvo", cache=False))

    def test_some_weights_in_host_memory(self):
        # Feed-forward on the host, attention with us: two splits a layer cannot be avoided, more would be a bug.
        self.check("smollm2", Cell("-ot ffn_.*=CPU", splits=range(2, 2 * LAYERS_OF_SMOLLM2 + 3)))
        self.check("qwen3moe", Cell("-cmoe", splits=range(2, 2 * 3 + 3)))

    def test_without_flash_attention(self):
        for name in ("smollm2", "gemma3", "qwen3"):
            self.check(name, Cell("-fa off", flash=False))
        # Here the host itself pins the end of attention to its CPU backend: two splits a layer.
        self.check("smollm2", Cell("-fa off -nkvo", splits=range(1, 2 * LAYERS_OF_SMOLLM2 + 2), cache=False, flash=False))

    def test_quantised_cache(self):
        for name, kind in (("smollm2", "q8_0"), ("smollm2", "q4_0"), ("gemma3", "q8_0")):
            self.check(name, Cell(f"-ctk {kind} -ctv {kind}"))

    def test_load_modes(self):
        for mode in ("none", "mmap", "mlock"):
            self.check("smollm2", Cell(f"-lm {mode}"))

    def test_no_repack(self):
        # The plugin does not see this flag of the host; its own knob has to say the same.
        self.check("llama-q4_0", Cell("--no-repack"), shadow="off")

    def test_one_thread_and_small_batches(self):
        self.check("llama-q4_0", Cell("-t 1 -ub 8 -b 16"))


if __name__ == "__main__":
    harness.main()
