package subsystems

func init() { registerController(&controller{name: "net_cls"}) }
