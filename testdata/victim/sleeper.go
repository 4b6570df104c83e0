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
			if err := calls[name].run(p, -1, calls[name].timeout); err != nil {
				p.fault("%s: %v", name, err)
			}
			fmt.Println(name)
		}
	}
}
