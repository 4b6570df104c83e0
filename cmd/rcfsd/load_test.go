package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// load uses a program until ctx ends, in rounds that are not broken off. It counts the answers at the
// end of each round, and says what went wrong.
type load func(ctx context.Context, answers *atomic.Int64) error

// page is what a web server has: a path, and what is to be found there.
type page func(i int) (path, body string)

// echo are the pages of servers that answer with the path.
func echo(i int) (path, body string) {
	path = "/" + strconv.Itoa(i)
	return path, path
}

// patience is how long an answer may take before it is a client's error.
const patience = 30 * time.Second

// web asks a web server for pages over one connection, without any retry.
func web(port int, pages page) load {
	return func(ctx context.Context, answers *atomic.Int64) error {
		c, err := dialWeb(port)
		if err != nil {
			return err
		}
		defer c.Close()
		for i := 1; ; i++ {
			path, body := pages(i)
			if err := c.ask(path, body, "keep-alive"); err != nil {
				return fmt.Errorf("request %d on a connection: %w", i, err)
			}
			answers.Add(1)
			if ctx.Err() != nil {
				return nil
			}
		}
	}
}

// newcomers asks a web server for pages over a new connection each.
func newcomers(port int, pages page) load {
	return func(ctx context.Context, answers *atomic.Int64) error {
		for i := 1; ; i++ {
			c, err := dialWeb(port)
			if err == nil {
				path, body := pages(i)
				err = c.ask(path, body, "close")
				if n, end := c.r.Discard(1); err == nil && end != io.EOF {
					err = fmt.Errorf("%d bytes after the page, %v", n, end)
				}
				c.Close()
			}
			if err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
			answers.Add(1)
			if ctx.Err() != nil {
				return nil
			}
		}
	}
}

// webConn is a client's connection to a web server.
type webConn struct {
	net.Conn
	r *bufio.Reader
}

func dialWeb(port int) (*webConn, error) {
	c, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", port), patience)
	if err != nil {
		return nil, err
	}
	return &webConn{c, bufio.NewReader(c)}, nil
}

// ask asks for a page, and for the connection to be kept alive or closed. Anything but the whole page
// is an error.
func (c *webConn) ask(path, want, connection string) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: %s\r\n\r\n", path, connection); err != nil {
		return err
	}
	response, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK || string(body) != want {
		return fmt.Errorf("%s: %s, %d bytes that begin with %.40q", path, response.Status, len(body), body)
	}
	return nil
}

// complaint is a line in which a program says that something went wrong.
var complaint = regexp.MustCompile(`(?im)^.*\b(error|fatal|panic|emerg|alert|crit|exception|aborted|failed transactions: [1-9])\b.*$`)

// generator runs a load generator again and again. Each round makes that many requests.
func generator(requests int, name string, args ...string) load {
	return func(ctx context.Context, answers *atomic.Int64) error {
		for {
			out, err := exec.Command(name, args...).CombinedOutput()
			if bad := complaint.FindAll(out, -1); err != nil || bad != nil {
				return fmt.Errorf("%s %s: %v: %q\n%s", name, strings.Join(args, " "), err, bad, out)
			}
			answers.Add(int64(requests))
			if ctx.Err() != nil {
				return nil
			}
		}
	}
}
