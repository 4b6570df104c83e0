package subsystems

import (
	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// See cgroup_namespaces(7). What its tasks see as the root of each kernel hierarchy is the group
// that its maker was in. Its maker is a keeper that was put into the new container's groups, of
// the controllers that are bound together with it; in the other hierarchies, the roster's included,
// it is where the daemon is. So it is made after the groups (proxy.Member).
//
// A namespace holds its root groups: they go for good only after it.
func init() {
	proxy.Register(&cgroupNamespace{namespace{name: "cgroupns", link: "cgroup", flag: unix.CLONE_NEWCGROUP, order: 20}})
}

type cgroupNamespace struct{ namespace }

func (n *cgroupNamespace) Create(p proxy.Place, _ proxy.Object) (proxy.Object, error) {
	plan := n.plan(p)
	plan.unshared = unix.CLONE_NEWCGROUP
	if m, ok := p.(proxy.Member); ok {
		plan.place = m.Join
	}
	return n.makeBy(p, plan)
}
