package subsystems

import "rcfs/proxy"

// ValueParsers returns what reads each kind of values, by the names of their files.
func ValueParsers() map[string]func(string) (string, error) {
	parsers := make(map[string]func(string) (string, error))
	for _, s := range proxy.Registered() {
		v, ok := s.(*value)
		if c, calls := s.(*caller); calls {
			v, ok = &c.value, true
		}
		if !ok {
			continue
		}
		for _, i := range v.items {
			parsers[v.name+"."+i.name] = i.parse
		}
	}
	return parsers
}
