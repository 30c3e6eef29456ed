package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"redoubt.dev/redoubt/integration/net/topology"
)

// target is where a server answers, and the network namespace of who asks.
type target struct {
	name, from string
	echo, http string // addresses with ports
}

// dial connects from the target's namespace.
func (t target) dial(address string) (c net.Conn, err error) {
	err = topology.In(t.from, func() error {
		c, err = net.DialTimeout("tcp4", address, 5*time.Second)
		return err
	})
	return c, err
}

const message = 64 // bytes of a ping

// pings sends a message and waits for it to come back, for so long, on one
// connection.
func (t target) pings(ctx context.Context, long time.Duration) (took []time.Duration, err error) {
	c, err := t.dial(t.echo)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for end := time.Now().Add(long); time.Now().Before(end) && ctx.Err() == nil; {
		d, err := ping(c)
		if err != nil {
			return nil, fmt.Errorf("ping %s: %w", t.name, err)
		}
		took = append(took, d)
	}
	return took, ctx.Err()
}

func ping(c net.Conn) (time.Duration, error) {
	var buf [message]byte
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return 0, err
	}
	begun := time.Now()
	if _, err := c.Write(buf[:]); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(c, buf[:]); err != nil {
		return 0, err
	}
	return time.Since(begun), nil
}

// connects opens a connection, has one message back and closes it, again and
// again.
func (t target) connects(ctx context.Context, long time.Duration) (took []time.Duration, err error) {
	err = topology.In(t.from, func() error { // one thread for all of them
		for end := time.Now().Add(long); time.Now().Before(end) && ctx.Err() == nil; {
			begun := time.Now()
			c, err := net.DialTimeout("tcp4", t.echo, 5*time.Second)
			if err != nil {
				return err
			}
			_, err = ping(c)
			// A reset, so that no port waits for the end of its time.
			err = errors.Join(err, c.(*net.TCPConn).SetLinger(0), c.Close())
			if err != nil {
				return fmt.Errorf("connect to %s: %w", t.name, err)
			}
			took = append(took, time.Since(begun))
		}
		return ctx.Err()
	})
	return took, err
}

// requests asks by HTTP over so many connections that are kept.
func (t target) requests(ctx context.Context, at int, long time.Duration) (took []time.Duration, err error) {
	tr := &http.Transport{
		MaxIdleConnsPerHost: at, MaxConnsPerHost: at, DisableCompression: true,
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) { return t.dial(address) },
	}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	ask := func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+t.http+"/", nil)
		if err != nil {
			return err
		}
		r, err := client.Do(req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r.Body)
		return errors.Join(err, r.Body.Close())
	}
	each, errs := make([][]time.Duration, at), make([]error, at)
	var all, open sync.WaitGroup
	open.Add(at)
	begin := make(chan struct{})
	for i := range at {
		all.Go(func() {
			errs[i] = ask() // opens the connection
			open.Done()
			<-begin
			for end := time.Now().Add(long); errs[i] == nil && time.Now().Before(end); {
				begun := time.Now()
				errs[i] = ask()
				each[i] = append(each[i], time.Since(begun))
			}
		})
	}
	open.Wait()
	close(begin)
	all.Wait()
	for _, e := range each {
		took = append(took, e...)
	}
	return took, errors.Join(errs...)
}
