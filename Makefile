# `make demo` and `make test` are all a fresh Debian machine needs, as root.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

RUN_PACKAGES := python3-venv wireguard-go wireguard-tools nftables iproute2 iputils-ping fping \
	graphviz procps util-linux iptables ipset
# python-iptables is compiled when it is installed.
RUN_PACKAGES += gcc libc6-dev python3-dev
# The virtual machine in which the kernel's own WireGuard is tested where this kernel has none.
TEST_PACKAGES := linux-image-amd64 qemu-system-x86 busybox-static kmod tcpdump
# Pods of the lab are joined by the real plugins.
TEST_PACKAGES += containernetworking-plugins
# A real Kubernetes API server, which no package carries, is built by tools/kube-apiserver.
TEST_PACKAGES += etcd-server etcd-client
# Pods of the manifests are run by a real container runtime.
TEST_PACKAGES += runc
# A real systemd, and the Debian package to install in it.
TEST_PACKAGES += mmdebstrap systemd-container help2man
# The container image, without a daemon.
TEST_PACKAGES += buildah
# A real browser for the agent's page.
TEST_PACKAGES += chromium chromium-driver
# The shells that complete kgctl's lines, besides bash.
TEST_PACKAGES += zsh fish

.DEFAULT_GOAL := help
.PHONY: help demo test emulated check fmt bench bench-compare deb image clean

help: ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(READY): pyproject.toml Makefile
	@tools/install-packages $(RUN_PACKAGES)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Python packages into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY) ## Bring up three clouds on this machine, show the mesh, take it down
	@$(BIN)/kgctl lab demo examples/file/three-clouds

test: $(READY) check ## Everything: checks, and every layer of tests
	@tools/install-packages $(TEST_PACKAGES)
	@command -v kubectl >/dev/null || tools/install-packages kubernetes-client
	@tools/kube-apiserver >/dev/null
	@$(BIN)/pytest

emulated: $(READY) ## What needs a kernel with WireGuard and IPIP, emulated where this one has none
	@tools/install-packages $(TEST_PACKAGES)
	@$(BIN)/pytest tests/kernel/test_kernel_drivers.py tests/lab/test_encapsulated.py tests/lab/test_cilium.py

check: $(READY) ## Format, lint, types, import contracts, dead code
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/vulture

fmt: $(READY) ## Format, and mend what the linter can mend
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

bench: $(READY) ## Measure what an agent costs, for every store and size of mesh, as root
	@tools/install-packages etcd-server etcd-client
	@tools/kube-apiserver >/dev/null
	@for file in bench/[a-z]*.py; do $(BIN)/python $$file || exit 1; done

bench-compare: $(READY) ## Measure the agents of two commits in one run: BASE=COMMIT, and this tree
	@$(BIN)/python bench/_compare.py $(BASE) $(or $(ARGS),--store directory --nodes 1000 --quick)

deb: $(READY) ## Build the Debian package, for this Debian release
	@tools/install-packages help2man
	@tools/deb $(BIN)/python .

image: ## Build the container image, with neither a daemon nor a registry
	@tools/install-packages buildah mmdebstrap
	@tools/image

clean: ## Remove what was built
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
