package subsystems

func init() { registerController(&controller{name: "cpuacct", core: []string{"cpu.stat"}}) }
