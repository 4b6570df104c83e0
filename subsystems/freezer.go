package subsystems

func init() {
	registerController(&controller{name: "freezer", freezes: true, core: []string{"cgroup.freeze", "cgroup.events"}})
}
