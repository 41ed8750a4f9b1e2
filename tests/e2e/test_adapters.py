"""What comes beside a plain text model: LoRA, control vectors, embeddings, pictures. Equal to stock with the host's arithmetic."""
import json
import math

import harness
from harness import alloy, delegated, model, run, stock
from server import Server

PROMPT = harness.PROMPT


class Adapters(harness.HostTest):
    def check(self, flags: list):
        expected = harness.complete(model("llama-q4_0"), stock(), 48, tuple(flags))
        plain = harness.complete(model("llama-q4_0"), stock(), 48)
        result = harness.complete(model("llama-q4_0"), delegated(), 48, tuple(flags))
        self.assert_ran(result)
        self.assert_used(result)
        self.assertNotEqual(expected.out, plain.out, "the adapter changes nothing, so this test would see nothing")
        self.assert_same_text(result.out, expected.out)

    def test_lora(self):
        self.check(["--lora", model("lora")])

    def test_scaled_lora(self):
        self.check(["--lora-scaled", f"{model('lora')}:0.5"])

    def test_control_vector(self):
        self.check(["--control-vector", model("control-vector")])


class Embeddings(harness.HostTest):
    needs = ["llama-embedding"]

    def embed(self, name: str, env: dict, flags: tuple = ()) -> tuple:
        result = run("llama-embedding", ["-m", model(name), "-p", "The sea was calm and grey", "--embd-output-format", "json", "-t", 2, "-lv", 4,
                                         *flags], env)
        self.assert_ran(result)
        return result, json.loads(result.out)["data"][0]["embedding"]

    def check(self, name: str, *flags: str):
        _, expected = self.embed(name, stock(), flags)
        result, got = self.embed(name, delegated(), flags)
        self.assert_used(result)
        self.assertGreater(len(set(expected)), 100)
        self.assertEqual(got, expected)

        result, near = self.embed(name, alloy(), flags)
        self.assert_used(result)
        self.assertGreater(result.kernel_steps, 0)
        norms = math.hypot(*expected) * math.hypot(*near)
        self.assertGreater(sum(a * b for a, b in zip(expected, near)) / norms, 0.999)  # rounding noise of 8-bit activations

    def test_causal_model(self):
        self.check("smollm2", "--pooling", "mean")

    def test_encoder_without_a_cache(self):
        self.check("bert")

    def test_server(self):
        def embedding(env: dict) -> list:
            with Server(model("bert"), "--embedding -np 2", env) as server:
                return server.post("/v1/embeddings", input=["a calm sea", "a rough sea"])["data"]
        self.assertEqual(embedding(delegated()), embedding(stock()))


class Pictures(harness.HostTest):
    needs = ["llama-mtmd-cli"]

    def describe(self, env: dict) -> harness.Run:
        result = run("llama-mtmd-cli", ["-m", model("llama-q4_0"), "--mmproj", model("mmproj"), "--image", model("picture"), "-p", "What is this?",
                                        "-n", 24, "--temp", 0, "-t", 2, "-c", 1024, "-lv", 4, "--chat-template", "vicuna"], env)
        self.assert_ran(result)
        return result

    def test_picture_in_the_prompt(self):
        expected = self.describe(stock())
        result = self.describe(delegated())
        self.assert_used(result)
        self.assertIn("CLIP using ALLOY0", result.text)  # the vision tower is with us too
        self.assertGreater(len(expected.out.strip()), 10)
        self.assert_same_text(result.out, expected.out)

        ours = self.describe(alloy())
        self.assert_used(ours)
        self.assertGreater(ours.kernel_steps, result.kernel_steps)


if __name__ == "__main__":
    harness.main()
