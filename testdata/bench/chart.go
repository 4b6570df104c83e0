package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// svg draws the ratios as bars, or the curves; "" where there is neither.
func (t *table) svg() string {
	switch {
	case len(t.curves) > 0:
		return t.drawCurves()
	case len(t.rows) > 1:
		return t.drawBars()
	}
	return ""
}

// canvas is a picture in the making.
type canvas struct{ strings.Builder }

func newCanvas(width, height int, title string) *canvas {
	c := new(canvas)
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(c, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	c.text(10, 20, "start", "#000", title)
	return c
}

func (c *canvas) text(x, y float64, anchor, colour, s string) {
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s">%s</text>`+"\n", x, y, anchor, colour, html.EscapeString(s))
}

func (c *canvas) line(x1, y1, x2, y2 float64, colour string) {
	fmt.Fprintf(c, `<path d="M%.1f %.1fL%.1f %.1f" stroke="%s"/>`+"\n", x1, y1, x2, y2, colour)
}

func (c *canvas) end() string { return c.String() + "</svg>\n" }

// axis maps values to places, by their logarithms.
type axis struct{ from, to, low, high float64 }

func (a axis) at(v float64) float64 {
	return a.from + (a.to-a.from)*(math.Log(v)-math.Log(a.low))/(math.Log(a.high)-math.Log(a.low))
}

// powers calls f for each power of ten on the axis.
func (a axis) powers(f func(v, at float64)) {
	for e := math.Ceil(math.Log10(a.low) - 1e-9); e <= math.Log10(a.high)+1e-9; e++ {
		f(math.Pow(10, e), a.at(math.Pow(10, e)))
	}
}

const grey, black = "#ddd", "#000"

// drawBars draws a bar from 1x, which is the first way, to each ratio; a tick is a target.
func (t *table) drawBars() string {
	height := 60 + 36*len(t.rows)
	c := newCanvas(720, height, t.title)
	low, high := 1/1.5, 1.5
	for i := range t.rows {
		low, high = min(low, t.ratio(i)/1.2), max(high, t.ratio(i)*1.2)
	}
	a := axis{20, 650, low, high}
	a.powers(func(v, x float64) {
		c.line(x, 32, x, float64(height-22), grey)
		c.text(x, float64(height-8), "middle", black, times(v))
	})
	for i, r := range t.rows {
		y := float64(40 + 36*i)
		x0, x1 := a.at(1), a.at(t.ratio(i))
		fmt.Fprintf(c, `<rect x="%.1f" y="%.1f" width="%.1f" height="12" fill="#48c"/>`+"\n", min(x0, x1), y+16, max(2, math.Abs(x1-x0)))
		for _, w := range r.wants {
			if goal := w.most * t.ratio(w.than); goal > low && goal < high {
				c.line(a.at(goal), y+12, a.at(goal), y+32, "#c00")
			}
		}
		c.text(24, y+12, "start", black, r.name)
		c.text(714, y+27, "end", black, times(t.ratio(i)))
	}
	return c.end()
}

var colours = []string{"#48c", "#c60", "#4a4", "#a4a", "#888", "#000"}

// drawCurves draws each curve, both axes by logarithms.
func (t *table) drawCurves() string {
	c := newCanvas(720, 380, t.title)
	var xs, ys []float64
	for _, v := range t.curves {
		xs, ys = append(xs, v.x...), append(ys, v.y...)
	}
	x := axis{50, 500, slices.Min(xs), slices.Max(xs)}
	y := axis{340, 40, min(0.8, slices.Min(ys)), max(2, 1.2*slices.Max(ys))}
	y.powers(func(v, at float64) {
		c.line(50, at, 500, at, grey)
		c.text(45, at+4, "end", black, times(v))
	})
	for _, v := range t.curves[0].x {
		c.line(x.at(v), 40, x.at(v), 340, grey)
		c.text(x.at(v), 356, "middle", black, number(v))
	}
	c.text(275, 374, "middle", black, t.along)
	for i, v := range t.curves {
		colour := colours[i%len(colours)]
		var path []string
		for k := range v.x {
			path = append(path, fmt.Sprintf("%.1f %.1f", x.at(v.x[k]), y.at(v.y[k])))
		}
		fmt.Fprintf(c, `<path d="M%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(path, "L"), colour)
		c.text(510, float64(50+18*i), "start", colour, v.name)
	}
	return c.end()
}
