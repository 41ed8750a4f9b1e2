"""llama-server: slots, streams, saved states, shifts and cancelled requests, as stock would answer them."""
import harness
from harness import alloy, delegated, model, stock
from server import Server

# Continuations whose first tokens no rounding changes, whatever else is in the batch.
SURE_PROMPTS = ["Count: 1, 2, 3, 4, 5, 6, 7, 8,", "Monday, Tuesday, Wednesday, Thursday, Monday, Tuesday, Wednesday,", "a b c d e f g h i j k",
                "January, February, March, April, May,"]
SURE_TOKENS = 6
STORY = harness.PROMPT
LONG_PROMPT = (harness.ROOT / "tests" / "e2e" / "data" / "prose.txt").read_text()
OTHER = "The recipe needs two eggs, a cup of flour and"


class ServerTest(harness.HostTest):
    needs = ["llama-server"]

    def play(self, name: str, flags: str, scene, env: dict):
        """`scene(server)` on a fresh server; returns what it returned, after checks that every server must pass."""
        with Server(model(name), flags, env) as server:
            result = scene(server)
            if "GGML_BACKEND_PATH" in env:
                self.check_counters(server.counters(), env)
            server.stop()
            self.assertEqual(server.code, 0, server.log.text[-2000:])
            if "GGML_BACKEND_PATH" in env:
                self.assert_used(server.log)
            else:
                self.assert_stock(server.log)
            self.log = server.log
        return result

    def check_counters(self, counters: dict, env: dict):
        self.assertGreater(counters["graphs"], 0)
        self.assertGreater(counters["plans_reused"], 0)
        self.assertGreater(counters["weight_bytes"], 0)
        for name in ("failed_graphs", "refused_accesses"):
            self.assertEqual(counters[name], 0, name)
        if env.get("GGML_ALLOY_KERNELS") == "off":
            self.assertEqual(counters["kernel_steps"], 0)
        else:
            self.assertGreater(counters["kernel_steps"], 0)

    def same_as_stock(self, name: str, flags: str, scene):
        """Host arithmetic, one request at a time: equal to the last bit."""
        expected = self.play(name, flags, scene, stock())
        self.assertEqual(self.play(name, flags, scene, delegated()), expected)
        return expected

    def sure_answers(self) -> list:
        return self.play("smollm2", "-c 2048 -np 1", lambda s: [s.tokens(p, SURE_TOKENS, cache_prompt=False) for p in SURE_PROMPTS], stock())


class Attention(ServerTest):
    def tiles_of_prompt(self, flags: str, env: dict) -> tuple:
        """(8-bit tiles, f32 tiles) after one long prompt."""
        def scene(server):
            server.tokens(LONG_PROMPT, 4)
            counters = server.counters()
            return counters["attention_int8_tiles"], counters["attention_f32_tiles"]
        return self.play("smollm2", flags, scene, env)

    def test_8_bits_are_opt_in(self):
        q8 = "-c 2048 -np 1 -ctk q8_0 -ctv q8_0"
        for flags, precision, expects_int8 in (("-c 2048 -np 1", "auto", False), (q8, "auto", True), (q8, "exact", False), ("-c 2048 -np 1", "int8", True)):
            with self.subTest(flags=flags, precision=precision):
                int8, f32 = self.tiles_of_prompt(flags, alloy() | {"GGML_ALLOY_ATTENTION": precision})
                self.assertEqual(int8 > 0, expects_int8)
                self.assertGreater(f32, 0)  # the most recent cells in any case


class Slots(ServerTest):
    def test_parallel_requests(self):
        expected = self.sure_answers()
        self.assertEqual(len({tuple(tokens) for tokens in expected}), len(SURE_PROMPTS))
        for flags, streams in (("-c 2048", 1), ("-c 2048 -np 4", 4)):
            for env in (delegated(), alloy()):
                with self.subTest(flags=flags, kernels=env.get("GGML_ALLOY_KERNELS", "on")):
                    rounds = self.play("smollm2", flags, lambda s: [s.at_once(SURE_PROMPTS, SURE_TOKENS) for _ in range(2)], env)
                    self.assertEqual(rounds, [expected, expected])
                    self.assertIn(f"4/{streams} seqs", self.log.text)

    def test_several_answers_to_one_prompt(self):
        # With streams the prompt's cells are copied to the other slots; unified they are shared.
        def scene(server):
            answer = server.post("/completion", **server.completion(STORY, 12, {"n_cmpl": 2, "seed": 7}))
            return [a["tokens"] for a in answer]

        for flags in ("-c 1024", "-c 1024 -np 4"):
            with self.subTest(flags=flags):
                first, second = self.same_as_stock("llama-q4_0", flags, scene)
                self.assertEqual(first, second)

    def test_prompt_cache_round_trip(self):
        # The second prompt pushes the first one's state out to the host's prompt cache, the third request brings it back.
        def scene(server):
            return [server.tokens(p, 16) for p in (STORY * 4, OTHER * 4, STORY * 4)]

        for kind in ("f16", "q8_0"):
            with self.subTest(cache=kind):
                first, _, again = self.same_as_stock("llama-q4_0", f"-c 1024 -np 1 -ctk {kind} -ctv {kind}", scene)
                self.assertEqual(first, again)
                self.assertIn("saving prompt", self.log.text)

    def test_context_shift(self):
        for kind in ("f16", "q8_0"):
            with self.subTest(cache=kind):
                tokens = self.same_as_stock("llama-q4_0", f"-c 256 -np 1 --context-shift -ctk {kind} -ctv {kind}",
                                            lambda s: s.tokens(STORY, 400))
                self.assertEqual(len(tokens), 400)
                self.assertIn("context shift", self.log.text)

    def test_cancelled_requests(self):
        def scene(server):
            before = server.tokens(STORY, 16, cache_prompt=False)
            for _ in range(3):
                server.cancelled(OTHER)
            return before, server.tokens(STORY, 16, cache_prompt=False)

        for flags in ("-c 1024 -np 1", "-c 1024"):
            with self.subTest(flags=flags):
                before, after = self.same_as_stock("llama-q4_0", flags, scene)
                self.assertEqual(before, after)


class States(ServerTest):
    def saved(self, server) -> tuple:
        tokens = server.tokens(STORY * 3, 16, id_slot=0)
        file = server.slot(0, "save", "story")
        onward = server.tokens(STORY * 3 + OTHER, 16, id_slot=0)
        server.tokens(OTHER * 2, 8, id_slot=0)
        server.slot(0, "restore", "story")
        return tokens, file, onward, server.tokens(STORY * 3 + OTHER, 16, id_slot=0)

    def test_saved_slots(self):
        for name, flags in (("llama-q4_0", "-np 1"), ("qwen3", "-np 1 -ctk q8_0 -ctv q8_0"), ("smollm2", "-np 2"),
                            ("gemma3", "-np 1"), ("llama-q4_0", "-np 1 -fa off"), ("llama-q4_0", "-np 1 -nkvo")):
            with self.subTest(model=name, flags=flags):
                _, file, onward, restored = self.same_as_stock(name, f"-c 1024 --no-warmup --cache-ram 0 {flags}", self.saved)
                self.assertGreater(len(file), 10000)
                self.assertEqual(onward, restored)

    def test_states_move_between_stock_and_alloy(self):
        """A user may switch the plugin on and off between save and restore."""
        flags = "-c 1024 -np 1 --no-warmup"
        states = {}

        def save(server):
            server.tokens(STORY * 3, 16)
            return server.slot(0, "save", "story"), server.tokens(STORY * 3 + OTHER, 16)

        def restore(server):
            (server.path / "story").write_bytes(states["file"])
            server.slot(0, "restore", "story")
            return server.tokens(STORY * 3 + OTHER, 16)

        for saver, restorer in ((stock(), delegated()), (delegated(), stock())):
            states["file"], expected = self.play("llama-q4_0", flags, save, saver)
            self.assertEqual(self.play("llama-q4_0", flags, restore, restorer), expected)


class Sampling(ServerTest):
    def test_backend_sampling(self):
        # The sampler chain becomes part of the graph; same seed, same choices.
        def scene(server):
            options = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "seed": 11, "ignore_eos": False}
            return [server.tokens(STORY, 24, **options), server.tokens(OTHER, 24, temperature=0), server.tokens(OTHER, 24, **options)]

        for name in ("smollm2", "llama-q4_0"):
            with self.subTest(model=name):
                self.same_as_stock(name, "-c 1024 -np 1 -bs", scene)
                self.assertRegex(self.log.text, r"sampler chain: .*\+")  # + marks the samplers in the graph
                self.assertEqual(self.log.splits, 1)

    def test_draft_model(self):
        # Target and draft in one process; the draft is the target, so that most of its tokens are accepted.
        draft = model("llama-q4_0")
        for name, rest in (("llama-q4_0", "-np 1"), ("llama-q4_0", "")):
            with self.subTest(flags=rest):
                self.same_as_stock(name, f"-c 1024 -md {draft} --spec-type draft-simple {rest}", lambda s: [s.tokens(p, 48) for p in (STORY, OTHER)])
                self.assertRegex(self.log.text, r"draft acceptance = 0\.[5-9]|draft acceptance = 1")


if __name__ == "__main__":
    harness.main()
