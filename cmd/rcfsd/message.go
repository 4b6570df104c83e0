package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// A message on the control socket is its length, four bytes in network order, and that many
// bytes of JSON. A descriptor travels with the bytes of its message.

// Bounds of a message. Requests are short; a status has a line for each proxy.
const (
	maxRequest = 64 << 10
	maxReply   = 256 << 20
)

// Operations that can be asked for.
const (
	opMount   = "mount"   // find or make a hierarchy; answered with the source of the mount
	opServe   = "serve"   // follows mount, with the mounted descriptor
	opRemount = "remount" // add to the hierarchy of a mount; answered with its name and source
	opStatus  = "status"  // take stock
	opRestart = "restart" // let the program on disk take over
	opDoctor  = "doctor"  // look for what is inconsistent
)

// request is what a client says.
type request struct {
	Op   string      `json:"op"`
	Spec *proxy.Spec `json:"spec,omitempty"` // of opMount and opRemount
	Dir  string      `json:"dir,omitempty"`  // of opMount: where, in the helper's mount namespace

	Device uint64 `json:"device,omitempty"` // of opServe and opRemount: the mount's device number
}

// reply is what the daemon answers.
type reply struct {
	Error  string  `json:"error,omitempty"`
	Exit   int     `json:"exit,omitempty"`   // the exit status that Error leads to
	Source string  `json:"source,omitempty"` // to opMount and opRemount
	Name   string  `json:"name,omitempty"`   // to opRemount
	Status *status `json:"status,omitempty"` // to opStatus

	Found []string `json:"found,omitempty"` // to opDoctor: a line each
}

// err returns the refusal in r, if there is one.
func (r *reply) err() error {
	if r.Error == "" {
		return nil
	}
	return &exitError{r.Exit, errors.New(r.Error)}
}

// decode reads exactly one JSON value with no field that v does not have.
func decode(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("message: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("message: more than one value")
	}
	return nil
}

// decodeRequest reads a request and refuses one that makes no sense. What a spec may contain is
// checked again, since it is joined into paths.
func decodeRequest(data []byte) (*request, error) {
	var r request
	if err := decode(data, &r); err != nil {
		return nil, err
	}
	// Which fields an operation has.
	fields := map[string]struct{ spec, dir, device bool }{
		opMount:   {spec: true, dir: true},
		opServe:   {device: true},
		opRemount: {spec: true, device: true},
		opStatus:  {},
		opRestart: {},
		opDoctor:  {},
	}
	want, ok := fields[r.Op]
	if !ok {
		return nil, fmt.Errorf("message: unknown operation %q", r.Op)
	}
	if want.spec != (r.Spec != nil) || want.dir != (r.Dir != "") || want.device != (r.Device != 0) {
		return nil, fmt.Errorf("message: %q has the wrong fields", r.Op)
	}
	if r.Spec != nil {
		if err := checkSpec(r.Spec); err != nil {
			return nil, err
		}
	}
	return &r, nil
}

func checkSpec(s *proxy.Spec) error {
	if s.Name != "" {
		if err := proxy.CheckName(s.Name); err != nil {
			return err
		}
	}
	if s.ReleaseAgent != "" {
		if err := proxy.CheckReleaseAgent(s.ReleaseAgent); err != nil {
			return err
		}
	}
	if s.Base != "" && !validBase(s.Base) {
		return fmt.Errorf("base %q: %w", s.Base, errPath)
	}
	return nil
}

// conn is one end of a control connection.
type conn struct{ *net.UnixConn }

// peerUID returns the user at the other end.
func (c conn) peerUID() (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, fmt.Errorf("SO_PEERCRED: %w", credErr)
	}
	return cred.Uid, nil
}

// send writes v, and gives the descriptor fd along unless it is negative.
func (c conn) send(v any, fd int, patience time.Duration) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	frame := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	// A stream takes what it has room for, and rights go with the first byte.
	n, _, err := c.WriteMsgUnix(frame, oob, nil)
	for err == nil && n < len(frame) {
		frame = frame[n:]
		n, err = c.Write(frame)
	}
	return err
}

// receive reads one message of at most limit bytes and the descriptor that came with it, -1 if
// there was none. Surplus descriptors are closed.
func (c conn) receive(limit int, patience time.Duration) (body []byte, fd int, err error) {
	fd = -1
	defer func() {
		if err != nil && fd >= 0 {
			unix.Close(fd)
			fd = -1
		}
	}()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, fd, err
	}
	var head [4]byte
	if err := c.readFull(head[:], &fd); err != nil {
		return nil, fd, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if int64(n) > int64(limit) {
		return nil, fd, fmt.Errorf("message of %d bytes, at most %d are taken", n, limit)
	}
	// Grows as bytes arrive: a length alone takes no memory.
	body = make([]byte, 0, min(int(n), 64<<10))
	for len(body) < int(n) {
		if len(body) == cap(body) {
			body = append(body, 0)[:len(body)]
		}
		chunk := body[len(body):min(cap(body), int(n))]
		err := c.readFull(chunk, &fd)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, fd, err
		}
		body = body[:len(body)+len(chunk)]
	}
	return body, fd, nil
}

func (c conn) readFull(buf []byte, fd *int) error {
	oob := make([]byte, unix.CmsgSpace(4))
	for done := 0; done < len(buf); {
		n, oobn, _, _, err := c.ReadMsgUnix(buf[done:], oob)
		if oobn > 0 {
			keepOne(oob[:oobn], fd)
		}
		done += n
		switch {
		case errors.Is(err, io.EOF) && done == 0:
			return io.EOF
		case errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
	return nil
}

// keepOne stores the first descriptor in fd and closes all others.
func keepOne(oob []byte, fd *int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, got := range fds {
			if *fd < 0 {
				*fd = got
			} else {
				unix.Close(got)
			}
		}
	}
}
