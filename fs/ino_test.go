package fs_test

import (
	"os"
	"syscall"
)

func ino(info os.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Ino }
