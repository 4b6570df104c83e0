package fs

import (
	"errors"

	"rcfs/proxy"
)

// attachTo moves the tasks whose ids are written, a line each, in order. It returns the bytes of
// the lines that were done; the error of the first line that was not is the answer only if none
// was, but its words are in rcfs.error in any case.
func attachTo(file string) func(*server, *proxy.Container, proxy.Writer, []byte) (int, error) {
	procs := file == "cgroup.procs"
	return func(s *server, c *proxy.Container, w proxy.Writer, data []byte) (int, error) {
		done := 0
		for _, line := range proxy.Lines(data) {
			answered, err := s.attach(c, line, procs, w, done)
			if err != nil {
				if done > 0 {
					s.refuse(c, err)
					return done, nil
				}
				return 0, err
			}
			done += len(line)
			if answered {
				break
			}
		}
		return done, nil
	}
}

// attach moves one task. When the writer itself has to be stopped for it, attach returns as soon
// as the write has to be answered (answered): the answer is the success of all lines up to this
// one. The move goes on, the writer runs into its stop at the end of its write(2), and should the
// move fail, the answer is corrected before the writer sees it. done is the number of bytes of
// the lines before.
func (s *server) attach(c *proxy.Container, line string, procs bool, w proxy.Writer, done int) (answered bool, err error) {
	a, err := c.NewAttach(line, procs, w)
	if err != nil {
		return false, err
	}
	if !a.Own() {
		return false, a.Run(nil)
	}
	answer := make(chan struct{})
	result := make(chan error, 1)
	s.view.moves.Go(func() {
		result <- a.Run(&proxy.OwnWrite{
			Answer: func() { close(answer) },
			Result: func(err error) int {
				s.refuse(c, err)
				if done > 0 {
					return done
				}
				return -int(errnoFor(w, err))
			},
		})
	})
	select {
	case <-answer:
		return true, nil
	case err := <-result:
		return false, err
	}
}

// refuse keeps an error for the container's rcfs.error and returns the errno.
func (s *server) refuse(c *proxy.Container, err error) statusCode {
	code := status(err)
	if !errors.Is(err, proxy.ErrRemoved) {
		c.SetRefusal(err)
	}
	s.log.Info("refused", "hierarchy", s.h.Name(), "why", words(err))
	return code
}

// words are what rcfs.error and the log say of an error.
func words(err error) string { return err.Error() + " (" + errnoName(err) + ")" }
