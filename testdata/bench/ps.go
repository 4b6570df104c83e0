package main

import (
	"fmt"
	"os/exec"
)

// ps counts many tasks by what they have.
func ps() (*table, error) {
	const processes, each = 10, 1000
	dir, end, err := mounted("cpu,pids")
	if err != nil {
		return nil, err
	}
	var kills []func()
	killAll := func() {
		for _, kill := range kills {
			kill()
		}
		kills = nil
	}
	defer killAll()
	for i := range processes {
		pid, kill, err := threads(each)
		if err != nil {
			return nil, err
		}
		kills = append(kills, kill)
		if err := writeFile(dir+ab(i)+"/cgroup.procs", pid); err != nil {
			return nil, err
		}
	}
	count := func(args ...string) func(int) error {
		return func(int) error { return exec.Command("bin/rcfs", append([]string{"ps", "--json"}, args...)...).Run() }
	}
	t := &table{title: fmt.Sprintf("rcfs ps of %d tasks and all others", processes*each), rows: []row{
		{name: "what each has, in /proc", rounds: 10, op: count("--proc")},
		{name: "by BPF, where the kernel has it", rounds: 50, op: count(), wants: []want{{most: 1. / 20}}},
	}, note: "By BPF a task takes some microseconds, and loading the program, which means reading the\n" +
		"kernel's description of its types, as much as all of these together."}
	err = t.measure()
	killAll()
	if err != nil {
		return nil, err
	}
	return t, end()
}
