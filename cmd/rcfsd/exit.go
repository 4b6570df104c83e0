package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// Exit statuses, those of mount(8).
const (
	exitUsage  = 1  // usage, options, permissions
	exitSystem = 2  // the machine lacks something
	exitMount  = 32 // the mount failed
)

// exitError is an error with the exit status it leads to.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// exit gives err the exit status code, unless it has one already.
func exit(code int, err error) error {
	if _, ok := errors.AsType[*exitError](err); ok || err == nil {
		return err
	}
	return &exitError{code, err}
}

// report prints err as one line and returns the exit status.
func report(w io.Writer, name string, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(w, "%s: %s\n", name, strings.ReplaceAll(err.Error(), "\n", "; "))
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code
	}
	return exitSystem
}
