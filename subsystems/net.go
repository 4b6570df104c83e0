package subsystems

import (
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// See network_namespaces(7). A new one has a loopback interface, which is brought up.
func init() {
	proxy.Register(&netNamespace{namespace{name: "net", link: "net", flag: unix.CLONE_NEWNET, order: 10, up: loopbackUp, files: []proxy.File{{
		Name:  "net.devices",
		Mode:  0o644,
		In:    proxy.Everywhere,
		Read:  proxy.Text(devices),
		Write: moveDevice,
	}}}})
}

type netNamespace struct{ namespace }

// Untouched reports whether it has the interfaces that every new one has: lo, and what modules add.
func (n *netNamespace) Untouched(o proxy.Object) bool {
	names, err := devices(o)
	if err != nil {
		return false
	}
	var fresh string
	err = onOwnThread(func() error {
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			fresh, err = interfaces()
		}
		return err
	})
	return err == nil && names == fresh
}

// loopbackUp uses netdevice(7), whose two calls take a fifth of the time that rtnetlink needs.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo)
	}
	if err != nil {
		return fmt.Errorf("loopback interface: %w", err)
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// devices lists the interfaces in a network namespace, a name a line.
func devices(o proxy.Object) (names string, err error) {
	err = inside(o, func() (err error) {
		names, err = interfaces()
		return err
	})
	return names, err
}

func interfaces() (string, error) {
	var names strings.Builder
	links, err := netlink.LinkList()
	for _, l := range links {
		fmt.Fprintln(&names, l.Attrs().Name)
	}
	return names.String(), err
}

// moveDevice moves an interface of the writer's network namespace into another one.
func moveDevice(o proxy.Object, data []byte, w proxy.Writer) error {
	if err := w.Capable(unix.CAP_NET_ADMIN); err != nil {
		return err
	}
	name := strings.TrimSpace(string(data))
	to, err := os.Open(o.(*nsObject).pin)
	if err != nil {
		return err
	}
	defer to.Close()
	from, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", w.TID))
	if err != nil {
		return err
	}
	defer from.Close()
	return onOwnThread(func() error {
		if err := unix.Setns(int(from.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the writer's network: %w", err)
		}
		link, err := netlink.LinkByName(name)
		if _, missing := err.(netlink.LinkNotFoundError); missing {
			return fmt.Errorf("interface %q: %w", name, unix.ENODEV)
		}
		if err != nil {
			return fmt.Errorf("interface %q: %w", name, err)
		}
		if err := netlink.LinkSetNsFd(link, int(to.Fd())); err != nil {
			return fmt.Errorf("move interface %q: %w", name, err)
		}
		return nil
	})
}
