package victim

import (
	"fmt"
	"io"
	"net"
	"net/http"
)

// server prints its port, and answers each request with the path that was asked for.
func server(p *program) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	p.must("listen", err)
	web := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.URL.Path) // a client that is gone is not ours
	})}
	p.ready()
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	go func() {
		<-p.stop
		web.Close()
	}()
	if err := web.Serve(l); err != http.ErrServerClosed {
		p.fault("serve: %v", err)
	}
}
