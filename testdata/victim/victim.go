// Package victim holds programs that check themselves while something is done
// to them from outside.
package victim
