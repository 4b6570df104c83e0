#!/usr/bin/env bash
# The project's test binaries on other kernels: Debian's, each booted under qemu's emulator with
# testdata/vm as its init. A guest is judged by its last line, "INIT END code=0". Arguments name
# the guests to boot, as in "6.1-v2"; none: all.
set -euo pipefail
cd "$(dirname "$0")/.."
. testdata/lib.sh
[ "$(id -u)" = 0 ] || { echo "make test-vm: needs root" >&2; exit 1; }
need qemu-system-x86_64 qemu-system-x86
need qemu-system-aarch64 qemu-system-arm
need busybox busybox-static
need cpio cpio
need xz xz-utils
need nsenter util-linux
need findmnt mount

go=${GO:-go}
build=$PWD/build/vm
packages='./cmd/rcfsd ./fs ./proxy ./proxy/census ./proxy/inject ./subsystems'
guests=${*:-6.1-v2 6.12-hybrid arm64-v2 6.1-v1 6.12-v2}
# An emulated machine is some twenty times slower than a real one.
patience=${RCFS_VM_PATIENCE:-1200}

# Which suite and architecture has which kernel, by its version or what is special about it.
suite() {
	case $1 in
	6.1 | arm64) echo bookworm ;;
	6.12) echo trixie ;;
	*) echo "make test-vm: no kernel $1" >&2; return 1 ;;
	esac
}
arch() { [ "$1" = arm64 ] && echo arm64 || echo amd64; }

# apt KERNEL COMMAND... asks the host's mirror for the suite and architecture of a kernel, with lists, a
# cache and a status of its own.
apt() {
	local dir=$build/apt/$1 command=$2
	shift 2
	APT_CONFIG=$dir/apt.conf "apt-$command" -qq "$@"
}
apt_prepare() {
	local dir=$build/apt/$1 mirror
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
	[ -n "$mirror" ] || { echo "make test-vm: apt's sources have no mirror of Debian" >&2; return 1; }
	mkdir -p "$dir"/lists/partial "$dir"/cache/archives/partial "$dir"/etc/{sources.list,apt.conf,preferences}.d
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $(suite "$1") main" >"$dir/etc/sources.list"
	: >"$dir/status" # nothing is installed
	cat >"$dir/apt.conf" <<-END
		APT::Architecture "$(arch "$1")";
		APT::Architectures "$(arch "$1")";
		APT::Sandbox::User "root";
		Dir::State::Lists "$dir/lists";
		Dir::State::status "$dir/status";
		Dir::Cache "$dir/cache";
		Dir::Etc "$dir/etc";
		Acquire::Languages "none";
	END
	apt "$1" get update
}

# kernel KERNEL unpacks a kernel into build/vm/KERNEL, once.
kernel() {
	local package unpacked
	[ ! -e "$build/$1/kernel" ] || return 0
	apt_prepare "$1"
	package=$(apt "$1" cache depends "linux-image-cloud-$(arch "$1")" | sed -n 's/^ *Depends: //p' | head -n 1)
	[ -n "$package" ] || { echo "make test-vm: $(suite "$1") has no cloud kernel" >&2; return 1; }
	rm -rf "${build:?}/$1"
	mkdir -p "$build/$1/unpacked"
	(cd "$build/$1" && apt "$1" get download "$package" && dpkg -x ./*.deb unpacked && rm ./*.deb)
	unpacked=$build/$1/unpacked
	find "$unpacked" -name 'fuse.ko*' -exec cp {} "$build/$1/" \;
	case $(echo "$build/$1"/fuse.ko*) in *.xz) xz -d "$build/$1"/fuse.ko.xz ;; esac
	echo "$package" >"$build/$1/package"
	cp "$unpacked"/boot/vmlinuz-* "$build/$1/kernel.new"
	rm -r "$unpacked"
	[ "$(arch "$1")" = amd64 ] || programs "$1"
	mv "$build/$1/kernel.new" "$build/$1/kernel" # the last: now it is all there
}

# programs KERNEL unpacks the programs of another architecture into build/vm/KERNEL/programs.
programs() {
	local archives=$build/apt/$1/cache/archives
	apt "$1" get install --download-only -y --no-install-recommends busybox-static bash dash coreutils util-linux mount
	for package in "$archives"/*.deb; do dpkg -x "$package" "$build/$1/programs"; done
	rm "$archives"/*.deb
}

# put FILE places a program of the host, and the libraries that it needs, into the guest.
put() {
	local file
	file=$(command -v "$1")
	cp -L "$file" "$root/usr/bin/$(basename "$file")"
	for library in $(ldd "$file" 2>/dev/null | grep -o '/[^ ]*'); do
		mkdir -p "$root$(dirname "$library")"
		cp -L "$library" "$root$library"
	done
}

# put_foreign FILE places a program of another architecture; all libraries are there.
put_foreign() {
	find "$programs" -path "*bin/$1" -exec cp -L {} "$root/usr/bin/" \;
}

# initramfs ARCH makes what all guests of an architecture have in common.
initramfs() {
	local put=put programs=$build/arm64/programs
	root=$build/root.$1
	rm -rf "$root"
	mkdir -p "$root"/{proc,sys,dev,run,tmp,root,mnt,etc,usr/bin,usr/sbin,usr/lib,usr/lib64,var/tmp}
	for dir in bin sbin lib lib64; do ln -s usr/$dir "$root/$dir"; done
	echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
	echo 'root:x:0:' >"$root/etc/group"
	if [ "$1" != amd64 ]; then
		put=put_foreign
		for dir in "$programs"/{lib,usr/lib}; do
			(cd "$dir" && find . -maxdepth 2 -name '*.so*' | cpio --quiet -p -d "$root/usr/lib")
		done
	fi
	# The cat of busybox reads with sendfile(2), and finds files of size 0 empty on FUSE (README.md).
	for program in busybox bash dash cat setpriv nsenter unshare sleep seq uname mount umount findmnt lsns df wc cut; do
		$put $program
	done
	ln -s dash "$root/usr/bin/sh"
	for program in $(busybox --list); do
		[ -e "$root/usr/bin/$program" ] || ln -s busybox "$root/usr/bin/$program"
	done
	GOARCH=$1 CGO_ENABLED=0 $go build -trimpath -ldflags '-s -w' -o "$root/init" ./testdata/vm
	mkdir "$root/tests"
	GOARCH=$1 CGO_ENABLED=0 $go test -c -trimpath -ldflags '-s -w' -o "$root/tests/" $packages
	cp README.md "$root/" # its session is a test
	(cd "$root" && find . | cpio --quiet -o -H newc) >"$build/root.$1.cpio"
}

# machine KERNEL runs the emulator for it; options follow.
machine() {
	local arch
	arch=$(arch "$1")
	shift
	set -- -cpu max -smp 2 -m 1024 -accel tcg,thread=multi \
		-nodefaults -no-user-config -display none -no-reboot -serial stdio "$@"
	case $arch in
	amd64) timeout -k 10 "$patience" qemu-system-x86_64 -machine q35 "$@" ;;
	# The architecture's own algorithm for pointer authentication is slow to emulate.
	arm64) timeout -k 10 "$patience" qemu-system-aarch64 -machine virt "$@" -cpu max,pauth-impdef=on ;;
	esac
}

# modules KERNEL makes what its guests have beside the initramfs.
modules() {
	local extra=$build/$1/extra
	mkdir -p "$extra"
	cp "$build/$1"/fuse.ko "$extra/" 2>/dev/null || true # built in
	(cd "$extra" && find . -mindepth 1 | cpio --quiet -o -H newc) >"$build/$1/extra.cpio"
}

# boot GUEST runs the tests in a guest; its console goes to a log. What depends on the kernel, and not on
# where its controllers are, is left to the first guest of each, and what depends on neither to the first of all.
boot() {
	local kernel=${1%-*} layout=${1##*-} log=$build/$1.log console=ttyS0 words=''
	[ "$(arch "$kernel")" = amd64 ] || console=ttyAMA0
	[[ " $guests " != *" $kernel-"*" $1 "* ]] || words=' kernel=tested'
	[ "$1" = "${guests%% *}" ] || words+=' programs=tested'
	cat "$build/root.$(arch "$kernel").cpio" "$build/$kernel/extra.cpio" >"$build/$1.cpio"
	machine "$kernel" -kernel "$build/$kernel/kernel" -initrd "$build/$1.cpio" \
		-append "console=$console quiet panic=-1 layout=$layout$words ${RCFS_VM_APPEND:-}" </dev/null |
		sed -u 's,\r*$,,' >"$log" || true
	rm "$build/$1.cpio"
}

passed() { [ "$(grep -a -o 'INIT END code=.*' "$build/$1.log" | tail -n 1)" = 'INIT END code=0' ]; }

# judge GUEST boots it, and shows its log in one piece.
judge() {
	local start=$SECONDS verdict=ok
	boot "$1"
	passed "$1" || verdict=FAILED
	{
		flock 9
		echo "== guest $1 ($(cat "$build/${1%-*}/package"))"
		cat "$build/$1.log"
		echo "== guest $1: $verdict after $((SECONDS - start)) s"
	} 9>"$build/output.lock"
}

mkdir -p "$build"
for kernel in $(for guest in $guests; do echo "${guest%-*}"; done | sort -u); do
	kernel "$kernel"
	modules "$kernel"
done
for arch in $(for guest in $guests; do arch "${guest%-*}"; done | sort -u); do initramfs "$arch"; done
for guest in $guests; do rm -f "$build/$guest.log"; done
# A guest keeps two processors busy.
for guest in $guests; do
	while [ "$(jobs -rp | wc -l)" -ge $((($(nproc) + 1) / 2)) ]; do wait -n || true; done
	judge "$guest" &
done
wait
failed=''
for guest in $guests; do passed "$guest" || failed+=" $guest"; done
[ -z "$failed" ] || { echo "== guests: FAILED:$failed"; exit 1; }
echo "== guests: ok"
