package subsystems

func init() { registerController(&controller{name: "perf_event"}) }
