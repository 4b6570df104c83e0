package subsystems

func init() {
	registerController(&controller{name: "freezer", core: []string{"cgroup.freeze", "cgroup.events"}})
}
