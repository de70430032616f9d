# The build of vmrt. `make build` makes in build/stage the same tree that `make install` installs.
#
#   make build | run | test | test-workloads | test-intel | posix | bench | fuzz | sanitize | soak | lint | picture | install | clean | deps
#   PREFIX, DESTDIR   where to install           FILTER   part of the names of the end-to-end tests to run
#   BENCH             options of the benchmarks; '--part jail' measures the jail: vmrt with it and without it
#   SECONDS, TARGET   how long each fuzzing target runs (60), and which one
#   CYCLES            how many containers `make soak` runs and kills (5000)

SHELL := /bin/bash
PREFIX ?= /usr/local
DESTDIR ?=
FILTER ?=
BENCH ?=
TARGET ?=
CYCLES ?= 5000

build := $(CURDIR)/build
stage := $(build)/stage
release := target/release
static_target := $(shell uname -m)-unknown-linux-gnu
agent := target/static/$(static_target)/release/vmrt-agent
rootfs_builder := $(release)/rootfs-builder

# Copies the built files into the tree $(1).
define install_into
install -D -m 755 $(release)/vmrt $(1)/bin/vmrt
install -D -m 755 $(rootfs_builder) $(1)/bin/rootfs-builder
install -D -m 755 $(release)/vmrt-vmm $(1)/lib/vmrt/vmrt-vmm
install -D -m 644 $(build)/kernel/vmlinux $(1)/lib/vmrt/vmlinux
install -D -m 644 $(build)/initramfs.cpio $(1)/lib/vmrt/initramfs.cpio
endef

.PHONY: build deps kernel programs initramfs install run test test-workloads test-intel posix bench fuzz sanitize soak lint picture clean
.NOTPARALLEL:

build: deps kernel programs initramfs
	@$(call install_into,$(stage))
	@echo "built: $(stage)/bin/vmrt" >&2

deps:
	@.ci/deps

kernel:
	@guest-kernel-config/build $(build)/kernel

# The agent has other flags and a folder of its own. Its build fills the processor that the last step of the others leaves idle.
programs:
	@echo "programs: vmm, runtime, rootfs-builder, agent (static)" >&2
	@RUSTFLAGS='-C target-feature=+crt-static' cargo build --locked --release -p agent --features agent \
	  --target $(static_target) --target-dir target/static & \
	cargo build --locked --release -p vmm -p runtime -p rootfs-builder; status=$$?; wait $$! && exit $$status

initramfs:
	@$(rootfs_builder) initramfs --agent $(agent) --output $(build)/initramfs.cpio

install: build
	$(call install_into,$(DESTDIR)$(PREFIX))

run: build
	@tests/host/example $(rootfs_builder)

test: build
	@.ci/deps tests
	@# Mostly waits for the archive, so it runs beside the unit tests. tests/e2e waits for it and reports its failure.
	@tests/debian $(rootfs_builder) >/dev/null 2>&1 &
	@echo "test: unit tests" >&2
	@cargo test --locked --workspace --all-features --lib --bins --test bundles --test oci
	@cargo test --locked --workspace --all-features --doc
	@echo "test: the test host" >&2
	@tests/host/selftest
	@tests/e2e $(FILTER)

test-workloads: build
	@.ci/deps tests
	@tests/e2e workloads::

test-intel: build
	@tests/host/intel/run

posix: build
	@tests/posix/run

bench: build
	@.ci/deps tests
	@tests/bench/run $(BENCH)

# SECONDS counts only on the command line: in a shell's environment it is the age of that shell.
fuzz: seconds := $(if $(filter command%,$(origin SECONDS)),$(SECONDS),60)
fuzz:
	@.ci/deps fuzz
	@fuzz/run $(seconds) $(TARGET)

# The VMM's unit tests under AddressSanitizer: devices that are reset and dropped with I/O in flight, and drivers that rewrite chains.
sanitize: triple := $(shell rustc -vV | sed -n 's/^host: //p')
sanitize:
	@RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address cargo test --locked -p vmm --lib --target $(triple) \
	  --target-dir target/sanitize

# Runs containers and kills their VMMs at random times. Takes about 2 seconds for each on a software CPU.
soak: build
	@.ci/deps tests
	@VMRT_TEST_CYCLES=$(CYCLES) VMRT_E2E_LIMIT=$$((600 + 10 * $(CYCLES))) tests/e2e crash::runs_killed_at_random_leave_nothing

# Draws the picture of docs/ARCHITECTURE.md from its text.
picture:
	@.ci/deps picture
	@dot -Tsvg -o docs/architecture.svg docs/architecture.dot

lint:
	@.ci/deps tests
	@cargo fmt --all --check
	@cargo fmt --manifest-path fuzz/Cargo.toml --check
	@# The fuzzer's workspace is not compiled here. Its build stops at a lock file that misses a dependency of the crates.
	@cargo update --quiet --locked --workspace --manifest-path fuzz/Cargo.toml
	@cargo clippy --locked --workspace --all-targets --all-features -- -D warnings

clean:
	rm -rf $(build) target fuzz/target
