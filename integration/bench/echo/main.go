// Command echo is what the network benchmark asks: inside of an instance at a
// published port, and as a plain process at the end of a veth pair.
//
// Port 7000 sends back what it gets, port 8080 answers every HTTP request with
// 128 bytes. It takes no arguments and ends by a signal.
package main

import (
	"bytes"
	"io"
	"log"
	"net"
	"net/http"
)

func main() {
	l, err := net.Listen("tcp4", ":7000")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				log.Fatal(err)
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, onlyReader{c})
			}()
		}
	}()
	body := bytes.Repeat([]byte("redoubt\n"), 16)
	log.Fatal(http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(body)
	})))
}

// onlyReader keeps io.Copy from splicing inside of the kernel: a program that
// answers reads and writes.
type onlyReader struct{ io.Reader }
