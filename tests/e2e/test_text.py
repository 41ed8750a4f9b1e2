"""That models say the same: to the byte where the host's kernels compute, within a bound where ours do."""
import dataclasses
import os
import re
import tempfile

import harness
from harness import alloy, complete, delegated, model, run, stock

PROSE = harness.ROOT / "tests" / "e2e" / "data" / "prose.txt"


class SameText(harness.HostTest):
    """GGML_ALLOY_KERNELS=off: our memory and our plans, the host's arithmetic."""

    def check(self, name: str, tokens: int = 128, flags: tuple = (), prompt: str = harness.PROMPT):
        with self.subTest(model=name, flags=flags):
            expected = complete(model(name), stock(), tokens, flags, prompt)
            self.assert_ran(expected)
            self.assert_stock(expected)
            result = complete(model(name), delegated(), tokens, flags, prompt)
            self.assert_ran(result)
            self.assert_used(result)
            self.assertEqual(result.kernel_steps, 0)
            self.assert_same_text(result.out, expected.out)
            self.assertGreater(len(expected.out), len(prompt) + tokens)  # so that equal does not mean empty

    def test_real_models(self):
        for name in ("smollm2", "gemma3"):
            self.check(name)

    def test_random_models(self):
        for name in ("llama", "llama-q4_0", "llama-q4_k_m", "qwen3", "qwen3moe"):
            self.check(name)

    def test_long_prompt_in_pieces(self):
        # Crosses 256 cells, where the host pads its view of the cache, and ends with a batch of another size than the others.
        for name in ("smollm2", "llama-q4_k_m", "qwen3moe"):
            self.check(name, 64, ("-ub", "64", "-b", "128"), PROSE.read_text()[:1300])


@dataclasses.dataclass
class Divergence:
    kld: float       # mean, of the next token's distribution
    same_top: float  # percent


class Divergent(harness.HostTest):
    """Our kernels round in another order: how far is the next token's distribution from stock's?"""

    needs = ["llama-perplexity"]

    context = 256

    def perplexity(self, name: str, base: str, env: dict, chunks: int = 0, flags: tuple = ()) -> harness.Run:
        what = ["-f", PROSE, "--chunks", chunks] if chunks else ["--kl-divergence"]
        result = run("llama-perplexity", ["-m", model(name), "-c", self.context, "-b", self.context, "-t", 2, "-lv", 4, "--kl-divergence-base", base, *what, *flags],
                     env)
        self.assert_ran(result)
        return result

    def divergence(self, result: harness.Run) -> Divergence:
        text = result.text + result.out.decode()
        kld, top = re.search(r"Mean +KLD: +(-?[\d.]+)", text), re.search(r"Same top p: +([\d.]+)", text)
        self.assertTrue(kld and top, text[-2000:])
        return Divergence(float(kld[1]), float(top[1]))

    def compare(self, name: str, chunks: int, flags_of_floor: tuple = (), flags: tuple = ()) -> tuple:
        """(stock against itself with the given flags, with our kernels and flags)"""
        with tempfile.TemporaryDirectory(prefix="alloy-e2e-") as folder:
            base = os.path.join(folder, "logits")
            self.assert_stock(self.perplexity(name, base, stock(), chunks))
            floor = self.divergence(self.perplexity(name, base, stock(), flags=flags_of_floor))
            result = self.perplexity(name, base, alloy(), flags=flags)
        self.assert_used(result)
        self.assertGreater(result.kernel_steps, 0)
        self.assertEqual(bool(re.search(r"attention \w+ int8", result.text)), "-ctk" in flags)
        ours = self.divergence(result)
        print(f"\n{name}: stock {' '.join(flags_of_floor) or 'against itself'} {floor}, ours {ours}")
        return floor, ours

    def test_exact_where_activations_are_f32(self):
        for name, chunks in (("smollm2-f32", 4), ("gemma3-f32", 4)):
            with self.subTest(model=name):
                floor, ours = self.compare(name, chunks)
                self.assertLessEqual(ours.kld, floor.kld + 0.0005)
                self.assertGreaterEqual(ours.same_top, 99.5)

    def test_attention_without_flash_attention(self):
        _, ours = self.compare("smollm2-f32", 2, (), ("-fa", "off"))
        self.assertLessEqual(ours.kld, 0.0005)

    def test_quantised_caches_lose_no_more_than_with_stock(self):
        self.context = 512  # what is older than the last 128 cells is computed in 8 bits
        q8 = ("-ctk", "q8_0", "-ctv", "q8_0")
        for name in ("smollm2-f32", "gemma3-f32"):
            with self.subTest(model=name):
                floor, ours = self.compare(name, 2, q8, q8)
                self.assertLessEqual(ours.kld, 1.3 * floor.kld)  # level over thousands of positions, but these are 512

    def test_near_the_rounding_noise_of_quantised_models(self):
        # Any change of a last bit flips roundings of the host's 8-bit activations; its own two ways of attention differ by as much.
        for name, chunks in (("smollm2", 4), ("gemma3", 4)):
            with self.subTest(model=name):
                floor, ours = self.compare(name, chunks, ("-fa", "off"))
                self.assertGreater(floor.kld, 0)
                self.assertLessEqual(ours.kld, 1.5 * floor.kld)
                self.assertGreaterEqual(ours.same_top, floor.same_top - 3)


if __name__ == "__main__":
    harness.main()
