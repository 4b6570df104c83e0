# rcfs: one binary under several names, see cmd/rcfsd.

PREFIX ?= /usr
DESTDIR ?=
GO ?= go

SBIN = $(DESTDIR)$(PREFIX)/sbin
BIN = $(DESTDIR)$(PREFIX)/bin
HELPERS = mount.fuse.rcfs mount.rcfs
LINKS = $(HELPERS) rcfs

# mount(8) looks for its helpers in /sbin only. True where that is not $(PREFIX)/sbin anyway.
OTHER_SBIN = [ "$$(readlink -f /sbin)" != "$$(readlink -m $(PREFIX)/sbin)" ]

.PHONY: all build install uninstall clean demo test test-vm table storm bench

all: build

# go build knows best what has changed.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/rcfsd ./cmd/rcfsd
	cd bin && for link in $(LINKS); do ln -sf rcfsd $$link; done

install: build
	install -d $(SBIN) $(BIN)
	install -m 0755 bin/rcfsd $(SBIN)/rcfsd
	for helper in $(HELPERS); do ln -sf rcfsd $(SBIN)/$$helper; done
	ln -sf ../sbin/rcfsd $(BIN)/rcfs
	if $(OTHER_SBIN); then \
		install -d $(DESTDIR)/sbin && \
		for helper in $(HELPERS); do ln -sf $(PREFIX)/sbin/rcfsd $(DESTDIR)/sbin/$$helper; done; \
	fi

uninstall:
	rm -f $(SBIN)/rcfsd $(BIN)/rcfs $(HELPERS:%=$(SBIN)/%)
	if $(OTHER_SBIN); then rm -f $(HELPERS:%=$(DESTDIR)/sbin/%); fi

demo: build
	testdata/demo.sh

test:
	testdata/test.sh

# The same tests on Debian's kernels, with other cgroup layouts.
test-vm:
	testdata/vm.sh

# What works where, into README.md, after test-vm.
table:
	testdata/table.sh

# 1,000 kills of the daemon in the middle of moves and of its worker in anything, one of each between any two system
# calls of every operation, 10 minutes of everything at random with 1,000 containers and 5,000 tasks,
# 10,000 moves of each server under load: hours.
storm:
	testdata/storm.sh

# Three minutes; FULL=1: twenty. RUN=REGEXP: only some groups.
bench: build
	testdata/bench.sh $(if $(FULL),-full) $(if $(RUN),-run '$(RUN)')

clean:
	rm -rf bin build
