package subsystems

// The kernel lets only CAP_SYS_ADMIN open devices (devcgroup_update_access in
// security/device_cgroup.c), and would look at ours instead of the writer's.
func init() { registerController(&controller{name: "devices", admin: true}) }
