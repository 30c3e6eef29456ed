package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"redoubt.dev/redoubt/agent"
	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Call asks the first server that answers, as the administrator. A judge uses
// it where a person would read a table.
func (f *Fleet) Call(ctx context.Context, do func(context.Context, redoubtv1.FleetServiceClient) error) error {
	file, err := identity.LoadFile(f.File("admin.context"))
	if err != nil {
		return err
	}
	src := file.Source()
	defer src.Close()
	var errs []error
	for _, address := range file.Addresses {
		err := func() error {
			conn, err := identity.NewConn("passthrough:///"+address, src, identity.AuthorizeServers(file.Bundle.TrustDomain()))
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			return do(ctx, redoubtv1.NewFleetServiceClient(conn))
		}()
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", address, err))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// Dial opens a connection to a server as the administrator, for one who asks
// often; the connection ends with close.
func (f *Fleet) Dial(server string) (c redoubtv1.FleetServiceClient, close func(), err error) {
	file, err := identity.LoadFile(f.File("admin.context"))
	if err != nil {
		return nil, nil, err
	}
	src := file.Source()
	conn, err := identity.NewConn("passthrough:///"+f.cfg.Plan.Address(server)+":7450", src, identity.AuthorizeServers(file.Bundle.TrustDomain()))
	if err != nil {
		return nil, nil, errors.Join(err, src.Close())
	}
	return redoubtv1.NewFleetServiceClient(conn), func() { _ = conn.Close(); _ = src.Close() }, nil
}

// Until asks again and again until done says so. The error is the last answer's
// or what done found missing.
func (f *Fleet) Until(ctx context.Context, patience time.Duration, what string, ask func(context.Context, redoubtv1.FleetServiceClient) (missing string, err error)) error {
	begun := time.Now()
	last := "no answer yet"
	for {
		err := f.Call(ctx, func(ctx context.Context, c redoubtv1.FleetServiceClient) error {
			missing, err := ask(ctx, c)
			last = missing
			return err
		})
		if err == nil && last == "" {
			return nil
		}
		if err != nil {
			last = err.Error()
		}
		if fallen := f.Fallen(); len(fallen) > 0 {
			return fmt.Errorf("%s: %s", what, fallen[0])
		}
		if time.Since(begun) > patience {
			return fmt.Errorf("%s: not within %v: %s", what, patience, last)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(150 * time.Millisecond):
		}
	}
}

// Instances are the instances of a workload.
func (f *Fleet) Instances(ctx context.Context, name string) ([]*redoubtv1.Instance, error) {
	var out []*redoubtv1.Instance
	err := f.Call(ctx, func(ctx context.Context, c redoubtv1.FleetServiceClient) error {
		r, err := c.GetWorkload(ctx, &redoubtv1.GetWorkloadRequest{Namespace: "default", Name: name})
		out = r.GetWorkload().GetStatus().GetInstances()
		return err
	})
	return out, err
}

// Nodes are all nodes, by id.
func (f *Fleet) Nodes(ctx context.Context) (map[string]*redoubtv1.Node, error) {
	out := map[string]*redoubtv1.Node{}
	err := f.Call(ctx, func(ctx context.Context, c redoubtv1.FleetServiceClient) error {
		r, err := c.ListNodes(ctx, &redoubtv1.ListNodesRequest{})
		for _, n := range r.GetNodes() {
			out[n.GetId()] = n
		}
		return err
	})
	return out, err
}

// IdentityEnd is when the SVID that a node holds on disk ends.
func (f *Fleet) IdentityEnd(node string) (time.Time, error) {
	disk, err := identity.OpenDisk(agent.IdentityDir(f.File(node)), slog.New(slog.DiscardHandler))
	if err != nil {
		return time.Time{}, err
	}
	defer disk.Close()
	svid, err := disk.GetX509SVID()
	if err != nil {
		return time.Time{}, fmt.Errorf("identity of node %s: %w", node, err)
	}
	return svid.Certificates[0].NotAfter, nil
}

// Leader is the id of the server that leads, as the others know it.
func (f *Fleet) Leader(ctx context.Context) (string, error) {
	id := ""
	err := f.Call(ctx, func(ctx context.Context, c redoubtv1.FleetServiceClient) error {
		r, err := c.GetServerInfo(ctx, &redoubtv1.GetServerInfoRequest{})
		if id = r.GetLeader(); err == nil && id == "" {
			return errors.New("no leader is known")
		}
		return err
	})
	return id, err
}
