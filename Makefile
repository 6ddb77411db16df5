# make           builds bin/server and bin/handoffctl
# make demo      shows a server replaced by its next version under load
# make test      runs every test that needs no extra package
# make test-root runs the tests that need root; a skip is a failure
# make walk      walks the state machine and its mutations, and prints how far
# make proof     hands over 200 times under load and counts what is lost, beside servers that must lose something
# make bench     moves idle connections, and fails if that takes more than twice as long as it must
# make failures  kills and stops every process at every step of a handoff, and writes docs/failures.md
# make failures-check  does it again and compares the outcomes with that page
# make image     builds the container image handoff:dev (IMAGE=) by Docker, from nothing
# make test-containers  hands over between containers by the recipes of deploy/, under load; needs root, Docker and podman
# make lint      go vet, staticcheck and gofumpt, in the versions that tools/go.mod pins
# make man       writes the manual pages in docs/man anew, from the commands' help
# make deps      what .ci/run needs besides (Debian, as root)
GO ?= go

.PHONY: build demo test test-root walk proof bench failures failures-check image test-containers lint man deps clean

build:
	$(GO) build -o bin/ ./cmd/server ./cmd/handoffctl

demo: build
	$(GO) run ./integration/demo --server bin/server --handoffctl bin/handoffctl

# -count=1: tests that run processes are never answered from the cache. Everything is compiled first: beside a compiler
# that has all to do yet, tests that measure or wait are slow.
test:
	$(GO) build -race ./... && $(GO) test -race -count=1 -timeout 20m ./...
	cd examples && $(GO) build -race ./... && $(GO) test -race -count=1 -timeout 20m ./...
	cd deploy/kubernetes/check && $(GO) test -race -count=1 -timeout 20m ./...

test-root:
	HANDOFF_TEST_ROOT=1 $(GO) test -race -count=1 -run '^TestRoot' ./...

walk:
	$(GO) test -tags faults -count=1 -v -run 'TestWalk|TestMutations' ./handoff

# About a minute and a half on two cores; it builds what it runs, without the race detector.
proof:
	$(GO) run ./integration/proof

# Both take about two minutes on two cores, most of it waiting. The logs of a cell that fails are printed.
failures:
	$(GO) run ./integration/failures --write docs/failures.md

bench:
	$(GO) test -count=1 -run '^$$' -bench '^BenchmarkMove$$' -benchtime 15x ./handoff

failures-check:
	$(GO) run ./integration/failures --check docs/failures.md

# The image has no base, so nothing is pulled. Its context is made anew, since COPY takes modes from there.
IMAGE ?= handoff:dev
VERSION ?= $(shell git describe --tags --always --dirty)

image:
	rm -rf bin/image
	mkdir -p bin/image/run
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/image/ ./cmd/server ./cmd/handoffctl ./deploy/image/pause
	chmod 0755 bin/image/* && mkdir -m 0700 bin/image/run/handoff
	docker build --quiet --tag $(IMAGE) --file deploy/image/Dockerfile \
		--label org.opencontainers.image.title=handoff --label org.opencontainers.image.version=$(VERSION) bin/image

# In the package's directory, since go test shows there what a package that passes has printed: the table. Without the
# race detector, which would slow down the load; the programs in the image have none anyway.
test-containers: image
	cd integration/containers && HANDOFF_IMAGE=$(IMAGE) $(GO) test -tags containers -count=1 -timeout 40m

# gofumpt looks into every directory, so also into examples/, which is a module of its own.
# The tools are built from tools/, whose versions are apart from the library's.
lint:
	$(GO) vet ./...
	$(GO) vet -tags faults ./handoff
	$(GO) vet -tags containers ./integration/containers
	cd examples && $(GO) vet ./...
	cd deploy/kubernetes/check && $(GO) vet ./...
	cd tools && $(GO) build -o ../bin/tools/ mvdan.cc/gofumpt honnef.co/go/tools/cmd/staticcheck
	test -z "$$(bin/tools/gofumpt -l . | tee /dev/stderr)"
	bin/tools/staticcheck ./...
	bin/tools/staticcheck -tags faults ./handoff
	bin/tools/staticcheck -tags containers ./integration/containers
	cd examples && ../bin/tools/staticcheck ./...
	cd deploy/kubernetes/check && ../../../bin/tools/staticcheck ./...

man:
	$(GO) test -count=1 -run '^TestManPages$$' ./cmd/handoffctl -update

# gcc is for the race detector, chromium for the test of the page, ip for those of network namespaces. Podman needs
# netavark and iptables for a pod's network, catatonit for what holds it, and numbers for --userns=auto. An engine for
# docker-compose, and its user's right to use it, have to be there.
deps:
	apt-get update -q && apt-get install -y --no-install-recommends gcc libc6-dev make chromium iproute2 docker-compose \
		podman runc netavark iptables catatonit
	for f in /etc/subuid /etc/subgid; do \
		grep -q ^containers: $$f || echo containers:2147483647:2147483648 >>$$f || exit; done

clean:
	rm -rf bin
