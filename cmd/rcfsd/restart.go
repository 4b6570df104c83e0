package main

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// restartVerb has the program on disk take over, and returns when it serves. No request of a client fails meanwhile.
func restartVerb(args []string, _ io.Writer) error {
	if len(args) > 0 {
		return exit(exitUsage, fmt.Errorf("argument %q: restart takes none", args[0]))
	}
	before, err := askStatus()
	if err != nil {
		return exit(exitUsage, err)
	}
	if _, err := ask(&request{Op: opRestart}); err != nil {
		return exit(exitUsage, err)
	}
	deadline := time.Now().Add(launchPatience)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		now, err := askStatus()
		switch {
		case err == nil && now.Worker != before.Worker:
			return nil
		case err != nil && !errors.Is(err, errGone):
			return exit(exitUsage, err)
		case time.Now().After(deadline):
			return exit(exitSystem, fmt.Errorf("worker %d still serves after %s; see %s", before.Worker, launchPatience, logPath))
		}
		time.Sleep(pause)
	}
}

// ask sends one request that may be sent again, and returns the answer: of the next worker where one ends.
func ask(r *request) (a *reply, err error) {
	err = untilAnswered(func() error {
		c, err := dial()
		if err != nil {
			return err
		}
		defer c.Close()
		a, err = c.call(r, -1)
		return err
	})
	return a, err
}

func askStatus() (*status, error) {
	a, err := ask(&request{Op: opStatus})
	if err != nil {
		return nil, err
	}
	if a.Status == nil {
		return nil, errors.New("the daemon's answer has no status")
	}
	return a.Status, nil
}
