# Short names. Each fetches and builds what it needs; see tools/setup.
PRESET ?= release
BUILD  := build/$(PRESET)
JOBS   ?= $(shell nproc)

.PHONY: all demo test bench publish docs clean
all: $(BUILD)/build.ninja
	cmake --build $(BUILD) -j $(JOBS) --target ggml-alloy alloy

# The main job: the same prompts on stock llama.cpp and with the plugin.
demo: all
	python3 tools/demo/demo.py --host "$$(tools/setup/host.sh)" --plugin $(CURDIR)/$(BUILD)/bin/libggml-alloy.so \
	    --alloy $(BUILD)/bin/alloy "$$(tools/setup/models.py smollm2)" "$$(tools/setup/models.py gemma3)"

# Everything: kernels against fp64, layers against a fake host, sanitizers, ARM64 under emulation, the real host with real models.
test:
	tools/setup/test.sh $(PRESET)

# Ratios to stock, printed; never fails by time. Quiet machine wanted.
bench:
	tools/setup/bench.sh $(PRESET)

# The reports of docs/reports and the tables made of them. Hours; goes on where it was stopped. `tools/docs/publish.sh --list` tells.
publish: all
	tools/docs/publish.sh

docs: all
	$(BUILD)/bin/alloy knobs --markdown > docs/knobs.md
	python3 tools/docs/kernels.py > docs/kernels.md
	"$$(tools/setup/venv.sh docs)" tools/docs/papers.py .
	python3 tools/docs/reports.py

$(BUILD)/build.ninja: CMakeLists.txt CMakePresets.json
	tools/setup/packages.sh
	cmake --preset $(PRESET)

clean:
	rm -rf build
