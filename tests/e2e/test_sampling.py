"""Sampling in the graph (-bs): one split, each chain as one step, with the tokens that the host's own samplers draw from the same logits."""
import harness
from harness import alloy, complete, model
from server import Server

CHAINS = {
    "default": ("--temp", "0.8"),
    "top-p alone": ("--top-k", "0", "--top-p", "0.95", "--min-p", "0"),
    "min-p alone": ("--top-k", "0", "--top-p", "1", "--min-p", "0.05"),
    "dist alone": ("--top-k", "0", "--top-p", "1", "--min-p", "0"),
    "greedy": ("--temp", "0"),
    "temperature first": ("--top-k", "0", "--min-p", "0", "--top-p", "0.9", "--samplers", "temperature;top_p"),
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
                    self.assertRegex(result.text, r"\| chain\(.* draw\) +1 task ")
                    self.assertNotRegex(result.text, r"[|] PAD +\d")
                    self.assert_used(result)
                    self.assertEqual(result.splits, expected.splits)
                    self.assert_same_text(result.out, expected.out)
                    self.assertEqual(result.alloy_complaints, [])

    def test_min_p_1_keeps_the_best_token(self):
        expected = self.text("smollm2", CHAINS["greedy"], alloy())
        self.assert_same_text(self.text("smollm2", (*MIN_P_1, "-bs"), alloy()).out, expected.out)
        self.assert_same_text(self.text("smollm2", MIN_P_1, alloy()).out, expected.out)


class ServerSampling(harness.HostTest):
    needs = ["llama-server"]

    def answers(self, flags: str) -> list:
        """One request after another, each with a chain and a seed of its own; then two at once. Not top-p alone: the host's CPU sampler adds
        262 thousand probabilities in f32 and so differs from the host's own graph as well, in a third of such texts."""
        with Server(model("gemma3"), f"-np 2 {flags}", alloy()) as server:
            chains = ({"top_k": 200, "top_p": 0.95, "min_p": 0}, {"top_k": 40}, {"top_k": 0, "top_p": 1, "min_p": 0.1}, {"temperature": 0}, {"top_k": 20, "repeat_penalty": 1.2})
            got = [server.tokens(harness.PROMPT, 12, seed=i, cache_prompt=False, **{"temperature": 0.9, **c}) for i, c in enumerate(chains)]
            both = server.at_once([harness.PROMPT, "The recipe needs"], 12, seed=3, temperature=0.9, top_k=0, top_p=0.9)
            server.stop()
            self.assertEqual(server.code, 0, server.log.text[-2000:])
            self.assert_used(server.log)
        self.assertEqual([len(tokens) for tokens in both], [12, 12])
        return got

    def test_requests_with_their_own_chains(self):
        self.assertEqual(self.answers("-bs"), self.answers(""))


if __name__ == "__main__":
    harness.main()
