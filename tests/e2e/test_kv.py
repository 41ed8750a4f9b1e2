"""Compressed caches under llama-server: texts stay near those of exact caches, memory is really given back, nothing grows.

    ALLOY_SOAK=2000 test_kv.py Soak     2,000 requests instead of a few

What needs GGML_ALLOY_KV is skipped where the plugin does not count sealed pages.
"""
import concurrent.futures
import math
import os
import random
import time
import unittest

import harness
from harness import alloy, complete, model, stock
from server import Server, counter_names
from test_server import LONG_PROMPT, OTHER, STORY, SURE_PROMPTS, ServerTest

COMPRESSES = "kv_sealed_pages" in counter_names()
# Preset -> how far the next token's distribution may be from the exact cache's (half the sum of |p - q|), and half that on average. The
# 8-bit activations of quantised weights make 0.06 of any change of a last bit, such as another request in the batch.
LOSSY = {"int8": 0.12, "compact": 0.2, "tiny": 0.25}
FULL_PAGES = 1000  # characters of a prompt that fills pages beyond the recent ones, which stay exact
MIB = 1024 * 1024


def prose(first: int, length: int) -> str:
    return (LONG_PROMPT * 4)[first:first + length]


class KvTest(ServerTest):
    def setUp(self):
        self.plain_caches = 0

    def check_counters(self, counters: dict, env: dict):
        super().check_counters(counters, env)
        self.counters = counters
        self.plain_caches = counters.get("kv_plain_caches", 0)
        if env.get("GGML_ALLOY_KV", "exact") != "exact":
            self.assertGreater(counters["kv_sealed_pages"], 0)
            self.assertLess(counters["kv_live_bytes"], counters["kv_bytes"])
        elif COMPRESSES:
            self.assertEqual(counters["kv_sealed_pages"], 0)

    def assert_used(self, result: harness.Log):
        """A cache that was turned into plain rows says so, once."""
        self.assertIn("ALLOY0", result.text)
        self.assertGreater(result.plans, 0)
        others = [c for c in result.alloy_complaints if "lossy" not in c and "KV_EVICT" not in c]
        self.assertLessEqual(len(others), 1 if self.plain_caches else 0, others)


# --- texts --------------------------------------------------------------------------------------------------------------------------
def answer(server: Server, prompt: str, n: int = 8, **options) -> list:
    """(token, {token: probability}) of each step."""
    return steps_of(server.post("/completion", **server.completion(prompt, n, {"n_probs": 30} | options)))


def steps_of(completion: dict) -> list:
    return [(step["id"], {top["id"]: math.exp(top["logprob"]) for top in step["top_logprobs"]})
            for step in completion["completion_probabilities"]]


def distance(a: dict, b: dict) -> float:
    return sum(abs(a.get(token, 0) - b.get(token, 0)) for token in a.keys() | b.keys()) / 2


def slot_round_trip(server: Server) -> list:
    text = prose(0, 3000)
    first = answer(server, text, id_slot=0)
    server.slot(0, "save", "story")
    onward = answer(server, text + OTHER, id_slot=0)
    answer(server, prose(3000, 1500), id_slot=0, cache_prompt=False)
    server.slot(0, "restore", "story")
    return [first, onward, answer(server, text + OTHER, id_slot=0)]


def prompt_cache(server: Server) -> list:
    return [answer(server, text) for text in (prose(0, 3000), prose(3000, 2000), prose(0, 3000) + OTHER)]


def two_answers(server: Server) -> list:
    both = server.post("/completion", **server.completion(prose(0, FULL_PAGES * 2), 8, {"n_cmpl": 2, "n_probs": 30}))
    return [steps_of(one) for one in both]


def long_text(server: Server) -> list:
    return [answer(server, prose(0, 1500), 300)]


def at_once(server: Server, rounds: int = 2) -> list:
    """Slots that rest are saved and cleared, and come back to other cells."""
    texts = [prose(1000 * i, FULL_PAGES + 300 * i) for i in range(4)]
    dice, answers = random.Random(1), []
    for _ in range(rounds):
        with concurrent.futures.ThreadPoolExecutor(len(texts)) as pool:
            answers += pool.map(lambda text, wait: time.sleep(wait) or answer(server, text), texts, [dice.choice((0, 0, 0.1, 0.3)) for _ in texts])
    return answers


def again_and_again(server: Server) -> list:
    return at_once(server, 12)


def cancels(server: Server) -> list:
    before = answer(server, prose(0, 2000), cache_prompt=False)
    for i in range(3):
        server.cancelled(prose(1000 * i, FULL_PAGES))
    return [before, answer(server, prose(0, 2000), cache_prompt=False)]


@unittest.skipUnless(COMPRESSES, "this plugin does not compress caches")
class Texts(KvTest):
    def near_exact(self, flags: str, scene, pattern: str = "", noise: float = 0, name: str = "smollm2"):
        expected = self.play(name, flags, scene, alloy())
        if pattern:
            self.assertRegex(self.log.text, pattern)
        for preset, bound in LOSSY.items():
            with self.subTest(preset=preset, flags=flags):
                got = self.play(name, flags, scene, alloy(kv=preset))
                self.assertEqual([len(a) for a in got], [len(a) for a in expected])
                if pattern:
                    self.assertRegex(self.log.text, pattern)
                largest = max(self.assert_near(ours, exact, bound + noise) for ours, exact in zip(got, expected))
                print(f"\n{scene.__name__}, {preset}, {flags}: largest distance {largest:.3f}, {self.counters['kv_sealed_pages']} pages sealed")

    def assert_near(self, got: list, expected: list, bound: float) -> float:
        """Up to the first token that differs; that one may only be a choice between two that are about as likely."""
        distances = []
        for (token, ours), (exact_token, exact) in zip(got, expected):
            distances.append(distance(ours, exact))
            if token != exact_token:
                self.assertLessEqual(exact[exact_token] - exact.get(token, 0), 2 * bound)
                break
        self.assertLessEqual(max(distances), bound)
        self.assertLessEqual(sum(distances) / len(distances), bound / 2)
        return max(distances)

    def test_saved_slots(self):
        self.near_exact("-c 2048 -np 1 --cache-ram 0", slot_round_trip)

    def test_prompt_cache(self):
        self.near_exact("-c 2048 -np 1", prompt_cache, "saving prompt")

    def test_several_answers_to_one_prompt(self):
        for flags in ("-c 2048", "-c 4096 -np 2"):
            self.near_exact(flags, two_answers)

    def test_context_shift(self):
        self.near_exact("-c 512 -np 1 --context-shift", long_text, "context shift")

    def test_parallel_requests(self):
        for flags in ("-c 4096", "-c 4096 -np 2"):
            self.near_exact(flags, at_once, noise=0.1)  # others are in the batch: 0.095 between exact caches

    def test_slots_that_come_and_go(self):
        self.near_exact("-c 4096", again_and_again, noise=0.1)

    def test_cancelled_requests(self):
        for flags in ("-c 2048 -np 1", "-c 4096"):
            self.near_exact(flags, cancels)

    def test_models_that_norm_their_keys(self):
        self.near_exact("-c 2048 -np 1 --cache-ram 0", slot_round_trip, name="gemma3")
        self.assertEqual(self.counters["kv_balanced_caches"], 18)  # sliding windows included
        for name, balanced in (("qwen3", True), ("smollm2", False)):
            with self.subTest(model=name):
                self.play(name, "-c 2048 -np 1 --cache-ram 0", lambda s: answer(s, prose(0, 2 * FULL_PAGES)), alloy(kv="compact"))
                self.assertEqual(self.counters["kv_balanced_caches"] > 0, balanced)

    def test_answers_that_nothing_changes(self):
        expected = self.sure_answers()
        for preset in LOSSY:
            with self.subTest(preset=preset):
                prefix = prose(0, FULL_PAGES) + "\n\n"  # with more before them the answers are not sure any more
                exact, got = (self.play("smollm2", "-c 2048 -np 1", lambda s: [s.tokens(prefix + p, 4) for p in SURE_PROMPTS], env)
                              for env in (alloy(), alloy(kv=preset, kv_window="64")))
                self.assertEqual(got, exact)
                self.assertEqual(len(got), len(expected))


@unittest.skipUnless(COMPRESSES, "this plugin does not compress caches")
class Eviction(KvTest):
    LONG = 7600  # characters: about 1,500 tokens, of which two runs of 512 cells lie behind those that observe them

    def evicting(self, flags: str, scene, **knobs):
        return self.play("smollm2", flags, scene, alloy(kv="tiny") | {"GGML_ALLOY_KV_EVICT": "0.75"} | knobs)

    def refusals(self) -> list:
        return [line for line in self.log.alloy_complaints if "no further cell is evicted" in line]

    def test_long_prompts_lose_cells_and_answers_stay_near(self):
        def scene(server):
            first = answer(server, prose(0, self.LONG), id_slot=0)
            again = answer(server, prose(0, self.LONG), id_slot=0)                      # the whole prefix, less a token
            cut = answer(server, prose(0, self.LONG // 2) + OTHER, id_slot=0)           # cuts through a run
            return [first, again, cut], server.counters()

        flags = "-c 2048 -np 1 --cache-ram 0"
        kept, _ = self.play("smollm2", flags, scene, alloy(kv="tiny"))
        live = self.counters["kv_live_bytes"]
        got, counters = self.evicting(flags, scene)
        self.assertGreater(counters["kv_evicted_rows"], 0)
        self.assertEqual(counters["kv_plain_caches"], 0)
        self.assertEqual(self.refusals(), [])
        for ours, tiny in zip(got, kept):
            self.assertLess(distance(ours[0][1], tiny[0][1]), 0.3)
        self.assertLess(self.counters["kv_live_bytes"], 1.02 * live)

    def test_memory_of_what_was_evicted_is_given_back(self):
        def scene(server):
            answer(server, prose(0, self.LONG))
            return server.counters()["kv_live_bytes"], server.private_bytes()

        flags = "-c 2048 -np 1 --cache-ram 0"
        tiny, tiny_rss = self.play("smollm2", flags, scene, alloy(kv="tiny"))
        live, rss = self.evicting(flags, scene)
        self.assertLess(live, tiny)
        self.assertLess(rss - tiny_rss, live - tiny + 8 * MIB)  # what observes needs memory for a while

    def test_saved_states_end_it(self):
        def scene(server):
            text = prose(0, self.LONG)
            first = answer(server, text, id_slot=0)
            evicted = server.counters()["kv_evicted_rows"]
            server.slot(0, "save", "story")
            answer(server, prose(self.LONG, 2000), id_slot=0, cache_prompt=False)
            server.slot(0, "restore", "story")
            restored = answer(server, text, id_slot=0)
            return first, restored, evicted, server.counters()["kv_evicted_rows"]

        first, restored, before, after = self.evicting("-c 2048 -np 1 --cache-ram 0", scene)
        self.assertGreater(before, 0)
        self.assertEqual(after, before)
        self.assertEqual(len(self.refusals()), 1)
        self.assertIn("saves the cells", self.refusals()[0])
        self.assertLess(distance(restored[0][1], first[0][1]), 0.2)

    def test_sequences_that_share_a_cache_end_it(self):
        _, evicted = self.evicting("-c 4096 -np 4 --kv-unified --cache-ram 0", lambda s: (at_once(s), s.counters()["kv_evicted_rows"]))
        self.assertEqual(evicted, 0)
        self.assertEqual(len(self.refusals()), 1)
        self.assertIn("several sequences", self.refusals()[0])

    def test_context_shifts_bring_cells_back(self):
        answers, evicted = self.evicting("-c 1024 -np 1 --context-shift --cache-ram 0",
                                         lambda s: (answer(s, prose(0, 4300), 400), s.counters()["kv_evicted_rows"]))
        self.assertRegex(self.log.text, "context shift")
        self.assertGreater(evicted, 0)
        self.assertEqual(len(answers), 400)

    def test_nothing_to_evict_from(self):
        for knobs, part in (({"GGML_ALLOY_KV": "exact"}, "does nothing without a compressed cache"), ({"GGML_ALLOY_KV_EVICT": "1.5"}, "off|0.3-0.95")):
            with self.subTest(knobs=knobs):
                result = complete(model("llama-q4_0"), alloy(kv="tiny") | {"GGML_ALLOY_KV_EVICT": "0.5"} | knobs, 8)
                self.assert_ran(result)
                lines = [line for line in result.lines if part in line]
                self.assertEqual(len(lines), 1, result.text)


# --- wrong input --------------------------------------------------------------------------------------------------------------------
class BadInput(KvTest):
    needs = ["llama-server", "llama-completion"]

    @unittest.skipUnless(COMPRESSES, "this plugin does not compress caches")
    def test_wrong_knobs(self):
        expected = complete(model("llama-q4_0"), stock(), 24)
        for value in ("0.9", "0.1", "-0.3", "nan", "abc", "compact!", "compact tiny", "0.30x", "30%", "Compact"):
            with self.subTest(value=value):
                result = complete(model("llama-q4_0"), alloy(kv=value), 24)
                self.assert_ran(result)
                self.assert_same_text(result.out, expected.out)
                self.assertNotIn("ALLOY0", result.text)
                lines = [line for line in result.lines if "ggml-alloy: " in line]
                self.assertEqual(len(lines), 1, lines)
                for part in ("GGML_ALLOY_KV", value, "exact|int8|compact|tiny"):
                    self.assertIn(part, lines[0])

    def foreign_file(self) -> bytes:
        def save(server):
            server.tokens(STORY * 3, 8, id_slot=0)
            return server.slot(0, "save", "story")
        return self.play("llama-q4_0", "-c 1024 -np 1", save, alloy())

    def test_wrong_slot_files(self):
        foreign = self.foreign_file()

        def scene(server):
            text = prose(0, FULL_PAGES * 2)
            before = server.tokens(text, 8, id_slot=0, cache_prompt=False)
            good = server.slot(0, "save", "good")
            # Not cut within the cells: stock's server aborts then. kv_fuzz cuts states in memory, which it survives.
            files = {"head": good[:40], "empty": b"", "foreign": foreign, "noise": random.Random(1).randbytes(len(good))}
            for name, content in files.items():
                (server.path / name).write_bytes(content)
                status, said = server.request("POST", "/slots/0?action=restore", {"filename": name})
                self.assertEqual(status, 400, name)
                self.assertIn(b"restore", said, name)
                self.assertEqual(server.tokens(text, 8, id_slot=0), before, name)
            server.slot(0, "restore", "good")
            return before, server.tokens(text + OTHER, 8, id_slot=0)

        expected = self.play("smollm2", "-c 2048 -np 1 --cache-ram 0", scene, alloy())
        for preset in LOSSY if COMPRESSES else ():
            with self.subTest(preset=preset):
                before, _ = self.play("smollm2", "-c 2048 -np 1 --cache-ram 0", scene, alloy(kv=preset))
                self.assertEqual(before[0], expected[0][0])


# --- memory -------------------------------------------------------------------------------------------------------------------------
@unittest.skipUnless(COMPRESSES, "this plugin does not compress caches")
class Memory(KvTest):
    def held(self, server: Server) -> tuple:
        return server.private_bytes(), server.counters()["kv_live_bytes"]

    def fill_and_erase(self, server: Server) -> tuple:
        """(RssAnon, live bytes) with about 1,500 tokens in the cache, and live bytes when they are gone."""
        used = server.post("/completion", **server.completion(prose(0, 7600), 4, {}))["tokens_evaluated"]
        self.assertGreater(used, 1300)
        full = self.held(server)
        server.request("POST", "/slots/0?action=erase", {})
        server.tokens(OTHER, 4)
        return full, self.held(server)[1]

    def test_memory_is_given_back(self):
        flags = "-c 8192 -np 1 --cache-ram 0"
        (exact_rss, exact_live), exact_rest = self.play("smollm2", flags, self.fill_and_erase, alloy())
        self.assertLess(exact_rest, 0.25 * exact_live)
        for preset, share in (("int8", 0.62), ("compact", 0.45), ("tiny", 0.42)):  # the recent pages are as declared
            with self.subTest(preset=preset):
                (rss, live), rest = self.play("smollm2", flags, self.fill_and_erase, alloy(kv=preset))
                print(f"\n{preset}: {live / MIB:.1f} of {exact_live / MIB:.1f} MiB live, RssAnon {rss / MIB:.1f} instead of {exact_rss / MIB:.1f}")
                self.assertLess(live, share * exact_live)
                self.assertAlmostEqual(exact_rss - rss, exact_live - live, delta=0.1 * exact_live + 2 * MIB)
                self.assertLess(rest, 0.5 * live)


class Soak(KvTest):
    """Clients that come and go: what is held does not grow beyond what stock's does."""

    requests = int(os.environ.get("ALLOY_SOAK", "80"))
    model_name, flags = "llama-q4_0", "-c 4096 --cache-ram 0"
    parts = 8  # samples a run

    def one_request(self, server: Server, number: int):
        dice = random.Random(number)
        text = prose(dice.randrange(4000), dice.choice((100, 400, 1200, 2500)))
        if dice.random() < 0.2:
            server.cancelled(text)
        else:
            server.tokens(text, dice.randint(1, 24), cache_prompt=dice.random() < 0.7)

    def samples(self, server: Server) -> list:
        """(RssAnon, live bytes) after each part of the requests."""
        result = []
        per_part = max(4, self.requests // self.parts)
        with concurrent.futures.ThreadPoolExecutor(4) as clients:
            for part in range(self.parts):
                list(clients.map(lambda i: self.one_request(server, i), range(part * per_part, (part + 1) * per_part)))
                counters = server.counters() if "GGML_BACKEND_PATH" in server.env else {}
                result.append((server.private_bytes(), counters.get("kv_live_bytes", 0), counters.get("kv_bytes", 0)))
        return result

    @staticmethod
    def growth(samples: list) -> float:
        """Of RssAnon over the second half, from its least squares line: the first half fills buffers."""
        values = [rss for rss, *_ in samples[len(samples) // 2:]]
        middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
        slope = sum((i - middle) * (v - mean) for i, v in enumerate(values)) / sum((i - middle) ** 2 for i in range(len(values)))
        return slope * len(values)

    def test_nothing_grows(self):
        allowed = max(0.0, self.growth(self.play(self.model_name, self.flags, self.samples, stock()))) + 8 * MIB
        presets = {"exact": 1.03} | ({"int8": 0.75, "compact": 0.6} if COMPRESSES else {})  # share of what is declared, short sequences are hot
        for preset, share in presets.items():
            with self.subTest(preset=preset):
                samples = self.play(self.model_name, self.flags, self.samples, alloy(kv=preset))
                print(f"\n{preset}: RssAnon {[round(rss / MIB, 1) for rss, *_ in samples]} MiB, live {[round(s[1] / MIB, 2) for s in samples]} MiB")
                self.assertLess(self.growth(samples), allowed)
                for _, live, declared in samples:
                    self.assertLessEqual(live, share * declared)


if __name__ == "__main__":
    harness.main()
