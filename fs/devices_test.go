package fs_test

import (
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
)

// An interface of the writer's network moves in when its name is written, if the writer could move
// it itself.
func TestNetDevices(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("net"))
	a := mkdir(t, dir+"/a")
	require.NoError(t, unix.Chmod(a+"/net.devices", 0o666))
	// A network of the test's own to take it from. It goes with its thread, and takes both ends of
	// the pair along.
	done := make(chan error)
	var other, refused, moved error
	var inside, outside []byte
	go func() {
		lockForEver()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "moved0"}, PeerName: "stays0"}); err != nil {
				return err
			}
			other = write(a+"/net.devices", "other0")
			refused = withoutNetAdmin(func() error { return write(a+"/net.devices", "moved0") })
			moved = write(a+"/net.devices", "moved0\n")
			var err, e error
			inside, err = os.ReadFile(a + "/net.devices")
			outside, e = os.ReadFile(dir + "/net.devices")
			return errors.Join(err, e)
		}()
	}()
	err := <-done
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("this kernel has no interfaces to move: no veth driver")
	}
	require.NoError(t, err)
	require.Equal(t, unix.ENODEV, other)
	require.ErrorIs(t, refused, unix.EPERM)
	require.NoError(t, moved)
	require.Equal(t, "lo\nmoved0\n", string(inside))
	require.NotContains(t, string(outside), "moved0")
}

// withoutNetAdmin runs f on a thread whose effective capabilities lack CAP_NET_ADMIN.
func withoutNetAdmin(f func() error) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have, less [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return err
	}
	less = have
	less[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&header, &less[0]); err != nil {
		return err
	}
	return errors.Join(f(), unix.Capset(&header, &have[0]))
}
