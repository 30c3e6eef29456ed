package network

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"time"
)

// childRole makes the test binary do something to be killed at.
const childRole = "REDOUBT_TEST_ROLE"

// child attaches and detaches at random, in the namespace that it was started
// in and the directory that it is given, until it is killed.
func child(dir string) int {
	ctx := context.Background()
	for {
		n, err := Open(ctx, Config{Node: "n1", Dir: dir, resolvers: []string{"/dev/null"}})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		for range 20 {
			id := rand.IntN(5)
			name := fmt.Sprintf("i%d", id)
			if rand.IntN(3) > 0 {
				_, err = n.Attach(ctx, Spec{Instance: name, None: id == 4, Ports: somePorts(id)})
			} else {
				err = n.Detach(ctx, name)
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			fmt.Println(name) // an operation is done
		}
		if rand.IntN(4) == 0 {
			err = n.Teardown(ctx)
		} else {
			err = n.Close()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		time.Sleep(time.Millisecond)
	}
}

func somePorts(id int) []Port {
	if id == 4 {
		return nil
	}
	return []Port{{Container: 80, Host: uint16(18000 + id)}, {Container: 53, Host: uint16(18000 + id), Protocol: "udp"}}
}
