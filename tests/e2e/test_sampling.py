"""Sampling in the graph (-bs): one split, on kernels of ours, with the tokens that the host's own samplers draw from the same logits."""
import harness
from harness import alloy, complete, model

CHAINS = {
    "default": ("--temp", "0.8"),
    "top-p alone": ("--top-k", "0", "--top-p", "0.95", "--min-p", "0"),
    "min-p alone": ("--top-k", "0", "--top-p", "1", "--min-p", "0.05"),
    "dist alone": ("--top-k", "0", "--top-p", "1", "--min-p", "0"),
    "greedy": ("--temp", "0"),
    "penalties": ("--top-k", "50", "--top-p", "0.9", "--repeat-penalty", "1.2", "--presence-penalty", "0.1"),
}
# At the default temperature; the host's own graph for it masks every token.
MIN_P_1 = ("--top-k", "0", "--top-p", "1", "--min-p", "1.0")


class BackendSampling(harness.HostTest):
    def text(self, name: str, flags: tuple, env: dict) -> harness.Run:
        result = complete(model(name), env, 40, ("--seed", "11", "--ignore-eos", *flags))
        self.assert_ran(result)
        return result

    def test_same_tokens_as_the_hosts_samplers(self):
        for name in ("smollm2", "gemma3"):
            for chain, flags in CHAINS.items():
                with self.subTest(model=name, chain=chain):
                    expected = self.text(name, flags, alloy())
                    result = self.text(name, (*flags, "-bs"), alloy())
                    self.assert_used(result)
                    self.assertEqual(result.splits, expected.splits)
                    self.assert_same_text(result.out, expected.out)
                    self.assertEqual(result.alloy_complaints, [])

    def test_min_p_1_keeps_the_best_token(self):
        expected = self.text("smollm2", CHAINS["greedy"], alloy())
        self.assert_same_text(self.text("smollm2", (*MIN_P_1, "-bs"), alloy()).out, expected.out)
        self.assert_same_text(self.text("smollm2", MIN_P_1, alloy()).out, expected.out)


if __name__ == "__main__":
    harness.main()
