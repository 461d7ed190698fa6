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
# A real systemd, and the Debian package to install in it.
TEST_PACKAGES += mmdebstrap systemd-container help2man

.DEFAULT_GOAL := help
.PHONY: help demo test emulated check fmt bench deb clean

help: ## What can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

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

emulated: $(READY) ## The long labs of a kernel with IPIP, emulated where this one has none
	@tools/install-packages $(TEST_PACKAGES)
	@$(BIN)/pytest tests/lab/emulated.py

check: $(READY) ## Format, lint, types, import contracts, dead code
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/vulture

fmt: $(READY) ## Format, and mend what the linter can mend
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

bench: $(READY) ## Measure; prints ratios and counts
	@for file in bench/[a-z]*.py; do $(BIN)/python $$file || exit 1; done

deb: $(READY) ## Build the Debian package, for this Debian release
	@tools/install-packages help2man
	@tools/deb $(BIN)/python .

clean: ## Remove what was built
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
