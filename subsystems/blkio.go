package subsystems

// The block controller of v1; see io.go for v2's.
func init() { registerController(&controller{name: "blkio", v2Name: "io"}) }
