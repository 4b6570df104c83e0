package victim

import "fmt"

func init() { kinds["sleeper"] = sleeper }

// sleeper makes the calls named, each with a timeout, one after the other in one thread, and says
// after each which it was.
func sleeper(p *program) {
	p.ready()
	ownThread()
	for !p.stopped() {
		for _, name := range p.args {
			p.runBlocked(name, calls[name], -1)
			fmt.Println(name)
		}
	}
}
