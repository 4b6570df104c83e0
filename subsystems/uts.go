package subsystems

import (
	"strings"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// See uts_namespaces(7).
func init() {
	host := func(u *unix.Utsname) []byte { return u.Nodename[:] }
	domain := func(u *unix.Utsname) []byte { return u.Domainname[:] }
	registerNamespace(&namespace{name: "uts", link: "uts", flag: unix.CLONE_NEWUTS, order: 10, files: []proxy.File{
		utsFile("uts.hostname", host, unix.Sethostname),
		utsFile("uts.domainname", domain, unix.Setdomainname),
	}})
}

func utsFile(name string, get func(*unix.Utsname) []byte, set func([]byte) error) proxy.File {
	return proxy.File{
		Name: name,
		Mode: 0o644,
		In:   proxy.Everywhere,
		Read: proxy.Text(func(o proxy.Object) (value string, err error) {
			err = inside(o, func() error {
				var u unix.Utsname
				err := unix.Uname(&u)
				value = unix.ByteSliceToString(get(&u)) + "\n"
				return err
			})
			return value, err
		}),
		Write: func(o proxy.Object, data []byte, _ proxy.Writer) error {
			value := strings.TrimSuffix(string(data), "\n")
			if strings.ContainsAny(value, "\n\x00") {
				return proxy.ErrValue
			}
			return inside(o, func() error { return set([]byte(value)) })
		},
	}
}
