package subsystems

func init() { registerController(&controller{name: "pids"}) }
