package main

import (
	"debug/elf"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// make install puts a static program under DESTDIR, with its other names as links, and those that
// mount(8) looks for in /sbin also there where PREFIX is another place. make uninstall takes
// all of it away.
func TestMakeInstall(t *testing.T) {
	for _, c := range []struct {
		prefix string
		links  map[string]string
	}{
		{"/usr", map[string]string{
			"/usr/sbin/mount.fuse.rcfs": "rcfsd", "/usr/sbin/mount.rcfs": "rcfsd", "/usr/bin/rcfs": "../sbin/rcfsd",
		}},
		{"/opt/rcfs", map[string]string{
			"/opt/rcfs/sbin/mount.fuse.rcfs": "rcfsd", "/opt/rcfs/sbin/mount.rcfs": "rcfsd", "/opt/rcfs/bin/rcfs": "../sbin/rcfsd",
			"/sbin/mount.fuse.rcfs": "/opt/rcfs/sbin/rcfsd", "/sbin/mount.rcfs": "/opt/rcfs/sbin/rcfsd",
		}},
	} {
		dest := t.TempDir()
		code, _, stderr := call(t, "make", "-C", "../..", "install", "DESTDIR="+dest, "PREFIX="+c.prefix)
		require.Zero(t, code, stderr)
		program := c.prefix + "/sbin/rcfsd"
		want := map[string]string{program: ""}
		for link, to := range c.links {
			want[link] = to
		}
		if sbin, err := filepath.EvalSymlinks("/sbin"); c.prefix == "/usr" && (err != nil || sbin != "/usr/sbin") {
			for _, name := range []string{"mount.fuse.rcfs", "mount.rcfs"} {
				want["/sbin/"+name] = "/usr/sbin/rcfsd"
			}
		}
		assert.Equal(t, want, installed(t, dest))

		info, err := os.Stat(dest + program)
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o755), info.Mode())
		f, err := elf.Open(dest + program)
		require.NoError(t, err)
		defer f.Close()
		for _, p := range f.Progs {
			assert.NotEqual(t, elf.PT_INTERP, p.Type, "it is static")
		}

		code, _, stderr = call(t, "make", "-C", "../..", "uninstall", "DESTDIR="+dest, "PREFIX="+c.prefix)
		require.Zero(t, code, stderr)
		assert.Empty(t, installed(t, dest))
	}
}

// installed returns the files below dest, and where the links lead.
func installed(t *testing.T, dest string) map[string]string {
	list := make(map[string]string)
	require.NoError(t, filepath.WalkDir(dest, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name := path[len(dest):]
		list[name] = ""
		if e.Type() == os.ModeSymlink {
			list[name], err = os.Readlink(path)
		}
		return err
	}))
	return list
}
