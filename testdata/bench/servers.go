package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// daemon is the daemon's two processes.
type daemon struct{ PID, Worker int }

func theDaemon() (d daemon, err error) {
	out, err := exec.Command("bin/rcfs", "status", "--json").Output()
	if err != nil {
		return d, fmt.Errorf("rcfs status: %w", err)
	}
	return d, json.Unmarshal(out, &d)
}

// peer mounts a FUSE server to compare with, and returns a file there.
func peer(cmd *exec.Cmd) (string, error) {
	dir, err := os.MkdirTemp("/run", "peer")
	if err != nil {
		return "", err
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	dev := os.NewFile(uintptr(fd), "/dev/fuse")
	defer dev.Close()
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", fd)
	if err := unix.Mount("peer", dir, "fuse.peer", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return "", fmt.Errorf("mount %s: %w", dir, err)
	}
	cmd.ExtraFiles = []*os.File{dev}
	cmd.Stderr = os.Stderr
	err = cmd.Start()
	later(func() error {
		err := unix.Unmount(dir, unix.MNT_DETACH)
		if cmd.Process != nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
		return err
	})
	return dir + "/file", err
}

// nothing is the C server; backing is the file that it passes through, if any.
func nothing(backing ...string) (string, error) {
	return peer(exec.Command("build/bench-nothing", backing...))
}

// goFuseVariable makes this program a server that does nothing, by go-fuse, with one of two loops.
const goFuseVariable = "RCFS_BENCH_GOFUSE"

// The loops that such a server can have.
const (
	goFuseLoop   = "go-fuse"
	blockingLoop = "blocking"
)

func goFuse(loop string) (string, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), goFuseVariable+"="+loop)
	return peer(cmd)
}

// goFuseMain is that program.
func goFuseMain() {
	files := &idler{fuse.NewDefaultRawFileSystem()}
	options := &fuse.MountOptions{
		MaxWrite: 128 << 10, DisableXAttrs: true, DisableSplice: true, DisableReadDirPlus: true, ExtraCapabilities: fuse.CAP_ATOMIC_O_TRUNC,
	}
	switch os.Getenv(goFuseVariable) {
	case "":
		return
	case goFuseLoop:
		s, err := fuse.NewServer(files, "/dev/fd/3", options)
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench: go-fuse:", err)
			os.Exit(1)
		}
		s.Serve()
	case blockingLoop:
		s := fuse.NewProtocolServer(files, options)
		in, out := make([]byte, 256<<10), make([]byte, 256<<10)
		for {
			n, err := unix.Read(3, in)
			if err == unix.ENODEV {
				break
			}
			if err != nil {
				continue
			}
			if size, _ := s.HandleRequest([][]byte{in[:n]}, [][]byte{out}); size > 0 {
				_, _ = unix.Write(3, out[:size]) // ENOENT: nobody waits
			}
		}
	}
	os.Exit(0)
}

// idler is nothing.c's file system.
type idler struct{ fuse.RawFileSystem }

const hour = 3600

func (*idler) Lookup(_ <-chan struct{}, _ *fuse.InHeader, _ string, out *fuse.EntryOut) fuse.Status {
	*out = fuse.EntryOut{NodeId: 2, EntryValid: hour, AttrValid: hour, Attr: fuse.Attr{Ino: 2, Mode: fuse.S_IFREG | 0o644, Nlink: 1}}
	return fuse.OK
}

func (*idler) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid, out.Attr = hour, fuse.Attr{Ino: in.NodeId, Mode: fuse.S_IFREG | 0o644, Nlink: 1}
	if in.NodeId == fuse.FUSE_ROOT_ID {
		out.Attr.Mode, out.Attr.Nlink = fuse.S_IFDIR|0o755, 2
	}
	return fuse.OK
}

func (*idler) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	return fuse.OK
}

var line = []byte("uts ipc net\n")

func (*idler) Read(_ <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	return fuse.ReadResultData(line[min(int(in.Offset), len(line)):]), fuse.OK
}

func (*idler) Write(_ <-chan struct{}, _ *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	return uint32(len(data)), fuse.OK
}
