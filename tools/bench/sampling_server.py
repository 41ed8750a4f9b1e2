"""Tokens a second of llama-server over a large vocabulary, with and without -bs, stock and with the plugin, in turn.

    sampling_server.py MODEL [--rounds N] [--threads N] [--tokens N]     ALLOY_HOST_BIN and ALLOY_PLUGIN as for the tests

One line a chain: ms a token of each server, median of the rounds, and the ratios."""
import argparse
import contextlib
import os
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "e2e"))
from server import Server  # noqa: E402

CHAINS = {
    "top-p .95 alone": {"top_k": 0, "top_p": 0.95, "min_p": 0},
    "default": {},
    "min-p .05 alone": {"top_k": 0, "top_p": 1, "min_p": 0.05},
    "no filter": {"top_k": 0, "top_p": 1, "min_p": 0},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    stock, alloy = dict(os.environ), os.environ | {"GGML_BACKEND_PATH": os.environ["ALLOY_PLUGIN"]}
    stock.pop("GGML_BACKEND_PATH", None)
    kinds = {"stock": (stock, ""), "stock -bs": (stock, "-bs"), "alloy": (alloy, ""), "alloy -bs": (alloy, "-bs")}
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(Server(options.model, f"-np 1 -c 1024 -t {options.threads} {flags}", env)) for name, (env, flags) in kinds.items()}
        for chain, parameters in CHAINS.items():
            times = {name: [] for name in servers}
            for round_ in range(options.rounds):
                for name, server in servers.items():
                    request = server.completion("The recipe needs", options.tokens, {"temperature": 0.8, "seed": round_, **parameters})
                    times[name].append(server.post("/completion", **request)["timings"]["predicted_per_token_ms"])
            ratio = {name: statistics.median(t / a for t, a in zip(times[name], times["alloy -bs"])) for name in servers}
            print(f"{chain:18}" + "  ".join(f"{name} {statistics.median(t):.1f} ms" for name, t in times.items()) + "   over alloy -bs: "
                  + ", ".join(f"{name} {r:.2f}" for name, r in ratio.items() if name != "alloy -bs"), flush=True)


if __name__ == "__main__":
    main()
