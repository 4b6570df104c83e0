package subsystems

// The block controller of v2; see blkio.go for v1's.
func init() { registerController(&controller{name: "io", v1Name: "blkio"}) }
