#!/usr/bin/env python3
"""Makes the small random-weight models of the test suite and prints their paths, one a line, in the order asked for.

    random_models.py NAME..        names: see MODELS at the end of this file

Random models cover architectures and formats that no small public model covers. Weights are drawn from a seed made of the model's and
the tensor's name, so that every machine makes the same bytes. The tokenizer is SmolLM2's. Needs numpy and gguf: run it with the
interpreter that tools/setup/venv.sh prints. Other formats are made by the llama-quantize in ALLOY_HOST_BIN, or in the folder that host.sh prints; among
them the two real models with their weights expanded to f32, for which no 8-bit activations hide what a kernel changes.
"""
import functools
import hashlib
import os
import pathlib
import subprocess
import sys
import zlib

import gguf
import numpy as np

from models import CACHE, fetch

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = CACHE / "models"
F32, F16 = 0, 1  # general.file_type


@functools.cache
def tokenizer_fields() -> list:
    reader = gguf.GGUFReader(fetch("smollm2"))
    return [(f.name, f.contents(), f.types) for f in reader.fields.values() if f.name.startswith("tokenizer.")]


def copy_tokenizer(writer: gguf.GGUFWriter) -> int:
    """Returns the number of tokens."""
    size = 0
    for name, value, types in tokenizer_fields():
        if name == "tokenizer.ggml.tokens":
            size = len(value)
        writer.add_key_value(name, value, types[0], types[1] if types[0] == gguf.GGUFValueType.ARRAY else None)
    return size


class Tensors:
    """Adds tensors to a writer; the values depend on the model's and the tensor's names only."""

    def __init__(self, writer: gguf.GGUFWriter, path: pathlib.Path, dtype=np.float16):
        self.writer, self.model, self.dtype = writer, path.stem.rpartition(".")[2], dtype  # without the prefix of a file in the making

    def noise(self, name: str, shape: tuple, scale: float) -> np.ndarray:
        digest = hashlib.sha256(f"{self.model}/{name}".encode()).digest()
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    def matrix(self, name: str, *shape: int, gain: float = 1.0, dtype=None):
        """Rows of `shape[-1]` inputs; scaled so that unit inputs give outputs near `gain`."""
        self.writer.add_tensor(name, self.noise(name, shape, gain / shape[-1] ** 0.5).astype(dtype or self.dtype))

    def norm(self, name: str, width: int):
        self.writer.add_tensor(name, 1 + self.noise(name, (width,), 0.1))

    def bias(self, name: str, width: int):
        self.writer.add_tensor(name, self.noise(name, (width,), 0.1))

    def affine(self, name: str, out: int, inp: int):
        self.matrix(name + ".weight", out, inp)
        self.bias(name + ".bias", out)

    def layer_norm(self, name: str, width: int):
        self.norm(name + ".weight", width)
        self.bias(name + ".bias", width)


def open_writer(path: pathlib.Path, arch: str, kind: int = F16) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_file_type(kind)
    return writer


def close_writer(writer: gguf.GGUFWriter):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def decoder(path: pathlib.Path, arch: str, layers: int, width: int, ffn: int, heads: int, kv_heads: int, head: int, experts: int = 0,
            used: int = 2, qk_norm: bool = False, post_norm: bool = False, window: int = 0, tokens: int = 0):
    """llama, qwen3, qwen3moe and gemma3 differ in names of few tensors only. `tokens`: so many without a text, and weights in f32."""
    w = open_writer(path, arch, F32 if tokens else F16)
    t = Tensors(w, path, np.float32 if tokens else np.float16)
    if tokens:
        w.add_tokenizer_model("none")
    else:
        tokens = copy_tokenizer(w)
    w.add_context_length(32768)
    w.add_embedding_length(width)
    w.add_block_count(layers)
    w.add_feed_forward_length(ffn)
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(500000.0)
    w.add_rope_dimension_count(head)
    w.add_key_length(head)
    w.add_value_length(head)
    w.add_vocab_size(tokens)
    if experts:
        w.add_expert_count(experts)
        w.add_expert_used_count(used)
        w.add_expert_feed_forward_length(ffn)
    if window:
        w.add_sliding_window(window)
        w.add_sliding_window_pattern(2)  # every second layer sees everything

    t.matrix("token_embd.weight", tokens, width, gain=width ** 0.5)
    t.norm("output_norm.weight", width)
    t.matrix("output.weight", tokens, width, gain=3)  # gives the next-token distribution some shape
    for i in range(layers):
        b = f"blk.{i}."
        t.norm(b + "attn_norm.weight", width)
        t.norm(b + "ffn_norm.weight", width)
        t.matrix(b + "attn_q.weight", heads * head, width)
        t.matrix(b + "attn_k.weight", kv_heads * head, width)
        t.matrix(b + "attn_v.weight", kv_heads * head, width)
        t.matrix(b + "attn_output.weight", width, heads * head)
        if qk_norm:
            t.norm(b + "attn_q_norm.weight", head)
            t.norm(b + "attn_k_norm.weight", head)
        if post_norm:
            t.norm(b + "post_attention_norm.weight", width)
            t.norm(b + "post_ffw_norm.weight", width)
        if experts:
            t.matrix(b + "ffn_gate_inp.weight", experts, width, dtype=np.float32)
            t.matrix(b + "ffn_gate_exps.weight", experts, ffn, width)
            t.matrix(b + "ffn_up_exps.weight", experts, ffn, width)
            t.matrix(b + "ffn_down_exps.weight", experts, width, ffn)
        else:
            t.matrix(b + "ffn_gate.weight", ffn, width)
            t.matrix(b + "ffn_up.weight", ffn, width)
            t.matrix(b + "ffn_down.weight", width, ffn)
    close_writer(w)


def encoder(path: pathlib.Path, layers: int = 3, width: int = 256, ffn: int = 512, heads: int = 4, context: int = 512):
    """bert: no cache, attention in both directions, biases, LayerNorm."""
    w = open_writer(path, "bert")
    tokens = copy_tokenizer(w)
    w.add_token_type_count(1)
    w.add_context_length(context)
    w.add_embedding_length(width)
    w.add_block_count(layers)
    w.add_feed_forward_length(ffn)
    w.add_head_count(heads)
    w.add_layer_norm_eps(1e-6)
    w.add_causal_attention(False)
    w.add_pooling_type(gguf.PoolingType.MEAN)
    w.add_vocab_size(tokens)

    t = Tensors(w, path)
    t.matrix("token_embd.weight", tokens, width, gain=width ** 0.5)
    t.matrix("token_types.weight", 1, width, dtype=np.float32)
    t.matrix("position_embd.weight", context, width, dtype=np.float32)

    t.layer_norm("token_embd_norm", width)
    for i in range(layers):
        b = f"blk.{i}."
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            t.affine(b + part, width, width)
        t.affine(b + "ffn_up", ffn, width)
        t.affine(b + "ffn_down", width, ffn)
        t.layer_norm(b + "attn_output_norm", width)
        t.layer_norm(b + "layer_output_norm", width)
    close_writer(w)


def lora(path: pathlib.Path, rank: int = 8):
    """For `llama`: attention and feed-forward matrices of both kinds of shape."""
    w = open_writer(path, "llama")
    w.add_type(gguf.GGUFType.ADAPTER)
    w.add_string(gguf.Keys.Adapter.TYPE, "lora")
    w.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 2.0 * rank)
    t = Tensors(w, path)
    for i in range(LLAMA["layers"]):
        for part, out, inp in (("attn_q", 256, 256), ("attn_v", 128, 256), ("attn_output", 256, 256), ("ffn_down", 256, 512)):
            t.matrix(f"blk.{i}.{part}.weight.lora_a", rank, inp, dtype=np.float32)
            t.matrix(f"blk.{i}.{part}.weight.lora_b", out, rank, dtype=np.float32)
    close_writer(w)


def control_vector(path: pathlib.Path):
    w = gguf.GGUFWriter(path, "controlvector")
    w.add_string("controlvector.model_hint", "llama")
    w.add_uint32("controlvector.layer_count", LLAMA["layers"] - 1)
    t = Tensors(w, path)
    for i in range(1, LLAMA["layers"]):
        t.bias(f"direction.{i}", LLAMA["width"])
    close_writer(w)


def vision_tower(path: pathlib.Path, layers: int = 3, width: int = 128, ffn: int = 256, image: int = 56, patch: int = 14):
    """A llava projector for `llama`: the plainest that the host knows, 16 patches an image."""
    w = open_writer(path, "clip")
    w.add_clip_has_vision_encoder(True)
    w.add_clip_projector_type("mlp")
    w.add_vision_image_size(image)
    w.add_vision_patch_size(patch)
    w.add_vision_embedding_length(width)
    w.add_vision_feed_forward_length(ffn)
    w.add_vision_projection_dim(LLAMA["width"])
    w.add_vision_block_count(layers)
    w.add_vision_head_count(2)
    w.add_vision_attention_layernorm_eps(1e-5)
    w.add_vision_image_mean([0.5, 0.5, 0.5])
    w.add_vision_image_std([0.5, 0.5, 0.5])
    w.add_vision_use_gelu(True)

    t = Tensors(w, path)
    t.matrix("v.patch_embd.weight", width, 3, patch, patch, gain=0.1, dtype=np.float32)
    t.matrix("v.position_embd.weight", (image // patch) ** 2, width, dtype=np.float32)

    for i in range(layers):
        b = f"v.blk.{i}."
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            t.affine(b + part, width, width)
        t.affine(b + "ffn_up", ffn, width)
        t.affine(b + "ffn_down", width, ffn)
        for part in ("ln1", "ln2"):
            t.layer_norm(b + part, width)
    t.affine("mm.0", LLAMA["width"], width)
    t.affine("mm.2", LLAMA["width"], LLAMA["width"])
    close_writer(w)


def picture(path: pathlib.Path, side: int = 64):
    """A PNG with a gradient and a disc, written without an image library."""
    y, x = np.mgrid[0:side, 0:side]
    rgb = np.stack([x * 255 // side, y * 255 // side, np.full_like(x, 90)], axis=-1).astype(np.uint8)
    rgb[(x - side // 2) ** 2 + (y - side // 2) ** 2 < (side // 4) ** 2] = (250, 240, 20)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    rows = b"".join(b"\0" + rgb[row].tobytes() for row in range(side))
    size = side.to_bytes(4, "big") * 2
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", zlib.compress(rows, 9)) +
                     chunk(b"IEND", b""))


def converted(path: pathlib.Path, source: str, kind: str):
    folder = os.environ.get("ALLOY_HOST_BIN") or subprocess.run([HERE / "host.sh", "native"], check=True, text=True,
                                                                 stdout=subprocess.PIPE).stdout.strip()
    env = {k: v for k, v in os.environ.items() if k != "GGML_BACKEND_PATH"}
    original = make(source) if source in MODELS else fetch(source)
    run = subprocess.run([f"{folder}/llama-quantize", "--allow-requantize", original, path, kind, "2"], env=env, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if run.returncode != 0:
        sys.exit(f"llama-quantize failed:\n{run.stdout[-2000:]}")


LLAMA = dict(arch="llama", layers=4, width=256, ffn=512, heads=4, kv_heads=2, head=64)
TINY = dict(layers=2, width=256, ffn=512, heads=4, kv_heads=2, head=64, tokens=512)
QWEN3MOE_32 = dict(arch="qwen3moe", layers=8, width=1024, ffn=512, heads=16, kv_heads=4, head=64, experts=32, used=8, qk_norm=True)
LLAMA_1B = dict(arch="llama", layers=16, width=2048, ffn=8192, heads=32, kv_heads=8, head=64)

# name -> (file, maker, its arguments)
MODELS = {
    "llama": ("random/llama.gguf", decoder, LLAMA),
    "llama-q4_0": ("random/llama-q4_0.gguf", converted, dict(source="llama", kind="Q4_0")),
    "llama-q4_k_m": ("random/llama-q4_k_m.gguf", converted, dict(source="llama", kind="Q4_K_M")),
    "qwen3": ("random/qwen3.gguf", decoder, dict(LLAMA, arch="qwen3", layers=3, qk_norm=True)),
    "qwen3moe": ("random/qwen3moe.gguf", decoder, dict(LLAMA, arch="qwen3moe", layers=3, ffn=256, experts=8, qk_norm=True)),
    # Small enough for tens of thousands of decodes; the second one with a window of 48 tokens in its first layer.
    "llama-tiny": ("random/llama-tiny.gguf", decoder, dict(TINY, arch="llama")),
    "gemma3-tiny": ("random/gemma3-tiny.gguf", decoder, dict(TINY, arch="gemma3", qk_norm=True, post_norm=True, window=48)),
    "bert": ("random/bert.gguf", encoder, {}),
    "lora": ("random/lora.gguf", lora, {}),
    "control-vector": ("random/control-vector.gguf", control_vector, {}),
    "mmproj": ("random/mmproj.gguf", vision_tower, {}),
    "picture": ("random/picture.png", picture, {}),
    "smollm2-f32": ("expanded/smollm2-f32.gguf", converted, dict(source="smollm2", kind="F32")),
    "gemma3-f32": ("expanded/gemma3-f32.gguf", converted, dict(source="gemma3", kind="F32")),
    # The shape of a 1B model, for benchmarks: 2.6 GB as f16.
    "llama-1b": ("random/llama-1b.gguf", decoder, LLAMA_1B),
    "llama-1b-q4_0": ("random/llama-1b-q4_0.gguf", converted, dict(source="llama-1b", kind="Q4_0")),
    "llama-1b-q4_k_m": ("random/llama-1b-q4_k_m.gguf", converted, dict(source="llama-1b", kind="Q4_K_M")),
    "llama-1b-q5_k_m": ("random/llama-1b-q5_k_m.gguf", converted, dict(source="llama-1b", kind="Q5_K_M")),
    "llama-1b-q6_k": ("random/llama-1b-q6_k.gguf", converted, dict(source="llama-1b", kind="Q6_K")),
    "llama-1b-q8_0": ("random/llama-1b-q8_0.gguf", converted, dict(source="llama-1b", kind="Q8_0")),
    "llama-1b-iq4_xs": ("random/llama-1b-iq4_xs.gguf", converted, dict(source="llama-1b", kind="IQ4_XS")),
    # 8 of 32 experts, for benchmarks.
    "qwen3moe-32": ("random/qwen3moe-32.gguf", decoder, QWEN3MOE_32),
    "qwen3moe-32-q4_k_m": ("random/qwen3moe-32-q4_k_m.gguf", converted, dict(source="qwen3moe-32", kind="Q4_K_M")),
}


def make(name: str) -> pathlib.Path:
    file, maker, arguments = MODELS[name]
    target = FOLDER / file
    if not target.exists():
        print(f"[setup] making {file}", file=sys.stderr)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Two makers at once write two files; the last rename wins with the same bytes.
        partial = target.with_name(f".{os.getpid()}.{target.name}")
        try:
            maker(partial, **arguments)
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)
    return target


if __name__ == "__main__":
    unknown = [name for name in sys.argv[1:] if name not in MODELS]
    if len(sys.argv) < 2 or unknown:
        sys.exit(f"usage: random_models.py NAME..   names: {' '.join(MODELS)}")
    for wanted in sys.argv[1:]:
        print(make(wanted))
