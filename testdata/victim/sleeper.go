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
			c := calls[name]
			if err := c.run(p, -1, c.timeout); err != c.end() {
				p.fault("%s: %v", name, err)
			}
			fmt.Println(name)
		}
	}
}
