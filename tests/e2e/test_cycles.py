"""A hundred models loaded, used and freed in one process leave nothing behind that stock does not leave too."""
import json

import harness
from harness import alloy, model, stock

CYCLES = 100

# Runs in a process of its own: libllama by ctypes, with the struct defaults that the library itself gives.
DRIVER = r'''
import ctypes, json, os, re, sys
host, path, cycles = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
llama = ctypes.CDLL(os.path.join(host, "libllama.so"), mode=ctypes.RTLD_GLOBAL)
ggml = ctypes.CDLL(os.path.join(host, "libggml.so"))
def struct(size):
    return type("Blob%d" % size, (ctypes.Structure,), {"_fields_": [("bytes", ctypes.c_ubyte * size)]})
MODEL, CONTEXT, BATCH = (struct(int(n)) for n in sys.argv[4:7])
llama.llama_model_default_params.restype = MODEL
llama.llama_context_default_params.restype = CONTEXT
llama.llama_model_load_from_file.argtypes, llama.llama_model_load_from_file.restype = [ctypes.c_char_p, MODEL], ctypes.c_void_p
llama.llama_init_from_model.argtypes, llama.llama_init_from_model.restype = [ctypes.c_void_p, CONTEXT], ctypes.c_void_p
llama.llama_batch_get_one.argtypes, llama.llama_batch_get_one.restype = [ctypes.POINTER(ctypes.c_int32), ctypes.c_int32], BATCH
llama.llama_decode.argtypes = [ctypes.c_void_p, BATCH]
llama.llama_free.argtypes = llama.llama_model_free.argtypes = [ctypes.c_void_p]
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
quiet = CALLBACK(lambda *a: None)
llama.llama_log_set(quiet, None)
ggml.ggml_backend_load_all_from_path(host.encode())
def facts():
    status = open("/proc/self/status").read()
    return {"anonymous_kib": int(re.search(r"RssAnon:\s+(\d+)", status)[1]), "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
            "files": len(os.listdir("/proc/self/fd")), "mappings": len(open("/proc/self/maps").readlines())}
samples = []
tokens = (ctypes.c_int32 * 4)(1, 2, 3, 4)
for i in range(cycles):
    m = llama.llama_model_load_from_file(path, llama.llama_model_default_params())
    c = llama.llama_init_from_model(m, llama.llama_context_default_params())
    assert m and c
    assert llama.llama_decode(c, llama.llama_batch_get_one(tokens, 4)) == 0
    llama.llama_free(c)
    llama.llama_model_free(m)
    samples.append(facts())
ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
print(json.dumps({"after_10": samples[9], "last": samples[-1], "devices": ggml.ggml_backend_dev_count()}))
'''


def struct_sizes() -> list:
    """sizeof the three structs that pass by value, from the host's own header."""
    include = harness.pathlib.Path(harness.HOST_BIN).parents[1] / "src"
    roots = list(include.glob("*/llama.cpp"))
    code = '#include "llama.h"\n#include <stdio.h>\nint main(void){printf("%zu %zu %zu", sizeof(struct llama_model_params), ' \
           'sizeof(struct llama_context_params), sizeof(struct llama_batch));}'
    with harness.tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/sizes"
        harness.subprocess.run(["cc", "-x", "c", "-", f"-I{roots[0]}/include", f"-I{roots[0]}/ggml/include", "-o", program], input=code, text=True,
                               check=True)
        return harness.subprocess.run([program], stdout=harness.subprocess.PIPE, text=True, check=True).stdout.split()


class Cycles(harness.HostTest):
    def measure(self, env: dict) -> dict:
        made = harness.subprocess.run([harness.sys.executable, "-c", DRIVER, harness.HOST_BIN, str(model("llama-q4_0")), str(CYCLES), *struct_sizes()],
                                      env=env | {"GGML_ALLOY_PLAN": "0"}, stdout=harness.subprocess.PIPE, stderr=harness.subprocess.PIPE, text=True,
                                      timeout=600)
        self.assertEqual(made.returncode, 0, made.stderr[-2000:])
        return json.loads(made.stdout.splitlines()[-1])

    def test_hundred_models(self):
        expected, got = self.measure(stock()), self.measure(alloy())
        self.assertEqual(got["devices"], expected["devices"] + 1)
        growth = {side: r["last"]["anonymous_kib"] - r["after_10"]["anonymous_kib"] for side, r in (("stock", expected), ("alloy", got))}
        print(f"\nanonymous memory, cycle 10 to {CYCLES}: {growth} KiB; alloy {got['last']}")
        self.assertLess(growth["alloy"] - max(growth["stock"], 0), 8192)
        for fact in ("threads", "files"):
            self.assertEqual(got["last"][fact], got["after_10"][fact], fact)
        self.assertLess(got["last"]["mappings"] - got["after_10"]["mappings"], 20)


if __name__ == "__main__":
    harness.main()
