package main

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"time"
)

// table is some ways to do one thing; the first is what the others are compared with.
type table struct {
	title   string
	rows    []row
	figures []figure // what is counted, not timed
	curves  []curve  // how a time grows
	along   string   // what the curves grow with
	note    string   // what is wanted, and what costs the rest
}

type row struct {
	name   string
	op     func(i int) error
	before func(i int) error // not timed; may be nil
	rounds int               // how often; 0: for as long as budget
	per    int               // how much op does at once; its time is divided by that. 0 is 1
	times  []time.Duration
	spent  time.Duration
	wants  []want
	most   time.Duration // what it may take; 0: anything
}

// want says that a row may take so many times what another one takes.
type want struct {
	most float64
	than int // the other's index
}

// figure is a number that is no time.
type figure struct {
	name  string
	value float64
	unit  string
	most  float64 // what is wanted; NaN: anything
}

// curve is how something grows: at each x, y times what it was at the first.
type curve struct {
	name string
	x, y []float64
}

// budget is for how long each way of a table is measured, turn for how long at a time: what disturbs one is to
// disturb all.
func budget() time.Duration { return either(400*time.Millisecond, 2*time.Second) }

const turn = 5 * time.Millisecond

// fewest is how often a way is measured at least.
const fewest = 5

func (r *row) done() bool {
	if r.rounds > 0 {
		return len(r.times) >= r.rounds
	}
	return r.spent >= budget() && len(r.times) >= fewest
}

// measure measures all ways, in turns.
func (t *table) measure() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	n := 0
	for left := true; left; {
		left = false
		for r := range t.rows {
			row := &t.rows[r]
			for end := time.Now().Add(turn); !row.done() && time.Now().Before(end); n++ {
				if err := row.once(n); err != nil {
					return fmt.Errorf("%s: %s: %w", t.title, row.name, err)
				}
			}
			left = left || !row.done()
		}
	}
	return nil
}

func (r *row) once(n int) error {
	if r.before != nil {
		if err := r.before(n); err != nil {
			return err
		}
	}
	start := time.Now()
	err := r.op(n)
	took := time.Since(start)
	r.spent += took
	r.times = append(r.times, took/time.Duration(max(1, r.per)))
	return err
}

// at returns a quantile, in microseconds.
func (r *row) at(q float64) float64 {
	slices.Sort(r.times)
	return float64(r.times[int(q*float64(len(r.times)-1))].Nanoseconds()) / 1000
}

func (r *row) median() float64 { return r.at(0.5) }

func micros(f float64) string {
	if f >= 1000 {
		return fmt.Sprintf("%.2f ms", f/1000)
	}
	return fmt.Sprintf("%.2f µs", f)
}

// ratio is the row's median in those of the first.
func (t *table) ratio(r int) float64 { return t.rows[r].median() / t.rows[0].median() }

// verdict is one line of the summary.
type verdict struct{ work, target, measured, says string }

func judged(measured, most float64) string {
	if measured <= most {
		return "met"
	}
	if most == 0 {
		return "missed"
	}
	if by := measured / most; by >= 2 {
		return fmt.Sprintf("missed %.3g times", by)
	}
	return fmt.Sprintf("missed by %.0f %%", math.Ceil(100*(measured/most-1)))
}

func (t *table) verdicts() []verdict {
	var list []verdict
	for _, r := range t.rows {
		work := t.title + " · " + r.name
		for _, w := range r.wants {
			than := &t.rows[w.than]
			is := r.median() / than.median()
			list = append(list, verdict{work, times(w.most) + " " + than.name, times(is), judged(is, w.most)})
		}
		if r.most != 0 {
			most := float64(r.most.Microseconds())
			list = append(list, verdict{work, micros(most), micros(r.median()), judged(r.median(), most)})
		}
	}
	for _, f := range t.figures {
		if !math.IsNaN(f.most) {
			list = append(list, verdict{t.title + " · " + f.name, number(f.most) + " " + f.unit, number(f.value) + " " + f.unit, judged(f.value, f.most)})
		}
	}
	return list
}

// times writes a ratio: 1.15x, 1/100.
func times(ratio float64) string {
	switch {
	case ratio < 0.1:
		return "1/" + number(1/ratio)
	case ratio < 10:
		return fmt.Sprintf("%.2fx", ratio)
	}
	return number(ratio) + "x"
}

func number(f float64) string {
	if f >= 100 || f == math.Trunc(f) {
		return fmt.Sprintf("%.0f", f)
	}
	return fmt.Sprintf("%.3g", f)
}

// lines are the table, a cell each.
func (t *table) lines() [][]string {
	var lines [][]string
	if len(t.rows) > 0 {
		lines = append(lines, []string{"way", "median", "ratio", "quarter to 3/4", "target", ""})
	}
	for i, r := range t.rows {
		var targets, says []string
		for _, w := range r.wants {
			targets = append(targets, fmt.Sprintf("%s of %d", times(w.most), w.than+1))
			is := r.median() / t.rows[w.than].median()
			says = append(says, judged(is, w.most)+" ("+times(is)+")")
		}
		if r.most != 0 {
			targets = append(targets, micros(float64(r.most.Microseconds())))
			says = append(says, judged(r.median(), float64(r.most.Microseconds())))
		}
		lines = append(lines, []string{
			fmt.Sprintf("%d %s", i+1, r.name), micros(r.median()), times(t.ratio(i)),
			micros(r.at(0.25)) + " – " + micros(r.at(0.75)), strings.Join(targets, ", "), strings.Join(says, ", "),
		})
	}
	if len(t.figures) > 0 {
		lines = append(lines, []string{"figure", "", "target", ""})
	}
	for _, f := range t.figures {
		target, says := "", ""
		if !math.IsNaN(f.most) {
			target, says = number(f.most)+" "+f.unit, judged(f.value, f.most)
		}
		lines = append(lines, []string{f.name, number(f.value) + " " + f.unit, target, says})
	}
	for i, c := range t.curves {
		if i == 0 {
			line := []string{t.along}
			for _, x := range c.x {
				line = append(line, number(x))
			}
			lines = append(lines, line)
		}
		line := []string{c.name}
		for _, y := range c.y {
			line = append(line, times(y))
		}
		lines = append(lines, line)
	}
	return lines
}
