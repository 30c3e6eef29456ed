// Command attacker is the workload of integration/net that attacks, and the one
// that is attacked. It answers at its ports and does at an exec what a file says:
//
//	attacker serve NAME ADDRESS...
//	attacker try|forge|lie|watch FILE
//	attacker flood ADDRESS FLOWS
//
// What came of it is printed as JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"redoubt.dev/redoubt/integration/net/attack"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "attacker:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return errors.New("what is to be done?")
	}
	say := json.NewEncoder(os.Stdout)
	switch args[0] {
	case "serve":
		return attack.Serve(ctx, args[1], args[2:], func() { fmt.Println("serving") })
	case "try":
		probes, err := read[[]attack.Probe](args[1])
		if err != nil {
			return err
		}
		return say.Encode(attack.Try(probes))
	case "forge":
		place, err := read[attack.Place](args[1])
		if err != nil {
			return err
		}
		frames, err := attack.Forgeries(place)
		if err != nil {
			return err
		}
		sent, err := attack.Send(frames)
		if err != nil {
			return err
		}
		return say.Encode(sent)
	case "lie":
		lies, err := read[[]attack.Lie](args[1])
		if err != nil {
			return err
		}
		var out []attack.Result
		for _, l := range lies {
			out = append(out, l.Tell())
		}
		return say.Encode(out)
	case "watch":
		watches, err := read[[]attack.Watch](args[1])
		if err != nil {
			return err
		}
		out := make([]attack.Watched, len(watches))
		var all sync.WaitGroup
		for i, w := range watches {
			all.Go(func() { out[i] = w.Look() })
		}
		all.Wait()
		return say.Encode(out)
	case "flood":
		to, err := netip.ParseAddr(args[1])
		if err != nil {
			return err
		}
		flows, err := strconv.Atoi(args[len(args)-1])
		if err != nil {
			return err
		}
		sent, err := attack.Flood(to, flows)
		if err != nil {
			fmt.Fprintln(os.Stderr, "attacker:", err)
		}
		return say.Encode(sent)
	}
	return fmt.Errorf("%q is nothing that is done here", args[0])
}

func read[T any](path string) (out T, err error) {
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	return out, err
}
