package cli

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"redoubt.dev/redoubt/control/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

type runFlags struct {
	name, prefer, floor, cpu, memory, network, user, workdir string
	sites, publish, env                                      []string
	pend, remove, keep, detach                               bool
	timeout                                                  time.Duration
}

func (a *app) runCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "run [flags] IMAGE [-- ARG...]", Short: "Run an image once and stay with it",
		Long: "Runs an image as a job of one instance, prints what it writes and ends with its\n" +
			"exit code. Says in one line where it runs, under which isolation, and why under\nnothing stronger. Afterwards it is forgotten, unless --keep. Ctrl-C stops it.\n\n" +
			"  redoubt run --prefer vm toolbox -- uname -a",
	}
	var r runFlags
	a.client(c)
	a.namespaced(c)
	fs := c.Flags()
	fs.StringVar(&r.prefer, "prefer", "", "isolation `CLASS` aimed at: strongest, container, sandbox, vm or microvm")
	fs.StringVar(&r.floor, "floor", "", "least isolation `CLASS` allowed, never crossed (default sandbox)")
	fs.BoolVar(&r.pend, "pend", false, "wait for what --prefer says instead of taking less")
	fs.StringSliceVar(&r.sites, "site", nil, "run in that `SITE`; may be repeated")
	fs.StringArrayVarP(&r.publish, "publish", "p", nil, "publish `HOST:CONTAINER` ports, as 8080:80, 127.0.0.1:8080:80, 53:53/udp or\n8000-8010:80-90")
	fs.StringArrayVarP(&r.env, "env", "e", nil, "set `NAME=VALUE`; NAME alone takes the value from here")
	fs.StringVar(&r.name, "name", "", "name it (default: from the image)")
	fs.StringVar(&r.cpu, "cpu", "", "limit of cores, as 500m or 2")
	fs.StringVar(&r.memory, "memory", "", "limit of memory, as 64Mi (default 128Mi)")
	fs.StringVar(&r.network, "network", "", "bridge or none")
	fs.StringVarP(&r.user, "user", "u", "", "run as that `UID[:GID]`")
	fs.StringVar(&r.workdir, "workdir", "", "run in that `PATH`")
	fs.BoolVar(&r.remove, "rm", true, "forget it once it has ended")
	fs.BoolVar(&r.keep, "keep", false, "keep it once it has ended, with its logs")
	fs.BoolVarP(&r.detach, "detach", "d", false, "do not wait: print its name and leave it running")
	fs.DurationVar(&r.timeout, "timeout", 0, "give up if it has not started after that long; 0: never")
	c.Args = func(c *cobra.Command, args []string) error {
		switch dash := c.ArgsLenAtDash(); {
		case len(args) == 0 || dash == 0:
			return fmt.Errorf("run: name an image; usage: %s", c.UseLine())
		case dash > 1:
			return fmt.Errorf("run: %q stands between the image and \"--\"; usage: %s", args[1], c.UseLine())
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		w, err := a.job(r, args[0], args[1:])
		if err != nil {
			return err
		}
		return a.with(c.Context(), func(ctx context.Context, f *connection) error {
			_, err := f.ApplyWorkload(ctx, &redoubtv1.ApplyWorkloadRequest{Workload: w, ExpectedRevision: proto.Uint64(0), CommandId: commandID()})
			switch code := status.Code(err); {
			case r.name != "" && (code == codes.AlreadyExists || code == codes.FailedPrecondition):
				return fmt.Errorf("run: there is a workload %s already: choose another --name, or `redoubt stop %s` (%s)", w.GetName(), w.GetName(), plain(err))
			case err != nil:
				return fmt.Errorf("run %s: %w", args[0], err)
			}
			if r.detach {
				_, err := fmt.Fprintln(a.Stdout, named(w.GetNamespace(), w.GetName()))
				return err
			}
			j := &attended{app: a, fleet: f, w: w}
			return j.attend(ctx, r)
		})
	}
	a.traced(c)
	return c
}

// job makes a workload of one attempt from flags, checked by the same rules as
// a file.
func (a *app) job(r runFlags, image string, args []string) (*redoubtv1.Workload, error) {
	if r.name == "" {
		r.name = nameFor(image)
	}
	vars, err := a.variables(r.env)
	if err != nil {
		return nil, fmt.Errorf("run: %w", err)
	}
	ports, err := published(r.publish)
	if err != nil {
		return nil, fmt.Errorf("run: %w", err)
	}
	security, err := runAs(r.user)
	if err != nil {
		return nil, fmt.Errorf("run: %w", err)
	}
	iso := &redoubtv1.Isolation{Floor: r.floor, Prefer: r.prefer}
	if r.pend {
		iso.OnUnavailable = "Pend"
	}
	limits := map[string]string{}
	if r.cpu != "" {
		limits["cpu"] = r.cpu
	}
	if r.memory != "" {
		limits["memory"] = r.memory
	}
	w := &redoubtv1.Workload{
		Kind: string(fleet.KindJob), Namespace: a.namespace, Name: r.name, Isolation: iso, Network: r.network,
		RestartPolicy: "Never", Job: &redoubtv1.Job{BackoffLimit: proto.Uint32(0)},
		Containers: []*redoubtv1.Container{{
			Image: image, Args: args, Env: vars, WorkingDir: r.workdir, Ports: ports,
			Resources: &redoubtv1.Resources{Limits: limits}, SecurityContext: security,
		}},
	}
	if len(r.sites) > 0 {
		w.Placement = &redoubtv1.Placement{Sites: r.sites}
	}
	if _, err := fleet.NewWorkload(w); err != nil {
		var invalid *fleet.InvalidWorkload
		if errors.As(err, &invalid) && len(invalid.Fields) > 0 {
			return nil, fmt.Errorf("run: %s", invalid.Fields[0].Error())
		}
		return nil, fmt.Errorf("run: %w", err)
	}
	return w, nil
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// nameFor makes a name from an image's last part and a few random letters.
func nameFor(image string) string {
	base, _, _ := strings.Cut(image[strings.LastIndexByte(image, '/')+1:], "@")
	base, _, _ = strings.Cut(strings.TrimPrefix(base, "oci:"), ":")
	base = strings.Trim(notInNames.ReplaceAllString(strings.ToLower(base), "-"), "-")
	if base == "" {
		base = "run"
	}
	return strings.TrimRight(base[:min(len(base), 30)], "-") + "-" + strings.ToLower(rand.Text()[:5])
}

// published reads [IP:]HOST:CONTAINER[/PROTOCOL] flags, where both may be ranges
// of one length.
func published(list []string) (ports []*redoubtv1.ContainerPort, err error) {
	for _, s := range list {
		bad := fmt.Errorf("--publish %q: write HOST:CONTAINER, as 8080:80, 127.0.0.1:8080:80, 53:53/udp or 8000-8010:80-90", s)
		rest, protocol, _ := strings.Cut(s, "/")
		ip := ""
		if i := strings.LastIndexByte(rest, ':'); i >= 0 {
			if j := strings.LastIndexByte(rest[:i], ':'); j >= 0 {
				ip, rest = strings.Trim(rest[:j], "[]"), rest[j+1:]
				if _, err := netip.ParseAddr(ip); err != nil {
					return nil, fmt.Errorf("--publish %q: %q is not an IP address", s, ip)
				}
			}
		}
		host, container, ok := strings.Cut(rest, ":")
		to, err1 := fleet.ParsePortRange(host)
		from, err2 := fleet.ParsePortRange(container)
		switch err := cmp.Or(err1, err2); {
		case ok && err != nil && strings.Contains(rest, "-"):
			return nil, fmt.Errorf("--publish %q: %w", s, err)
		case !ok || err != nil:
			return nil, bad
		}
		count := int(from.Last-from.First) + 1
		switch of := int(to.Last-to.First) + 1; {
		case of != count:
			return nil, fmt.Errorf("--publish %q: %s has %s and %s has %d: both need as many", s, host, plural(of, "port", "ports"), container, count)
		case len(ports)+count > fleet.MaxPorts:
			return nil, fmt.Errorf("--publish %q: more than %d ports in all; a container names at most so many", s, fleet.MaxPorts)
		}
		for n := range uint32(count) {
			ports = append(ports, &redoubtv1.ContainerPort{
				HostPort: uint32(to.First) + n, ContainerPort: uint32(from.First) + n, HostIp: ip, Protocol: strings.ToUpper(protocol),
			})
		}
	}
	return ports, nil
}

func runAs(user string) (*redoubtv1.SecurityContext, error) {
	if user == "" {
		return nil, nil
	}
	u, g, both := strings.Cut(user, ":")
	uid, err := strconv.ParseInt(u, 10, 64)
	s := &redoubtv1.SecurityContext{RunAsUser: &uid}
	if err == nil && both {
		var gid int64
		gid, err = strconv.ParseInt(g, 10, 64)
		s.RunAsGroup = &gid
	}
	if err != nil {
		return nil, fmt.Errorf("--user %q: write numbers, UID or UID:GID", user)
	}
	return s, nil
}

// attended is a job that somebody waits for.
type attended struct {
	*app
	fleet *connection
	w     *redoubtv1.Workload
}

const (
	removeTimeout = 10 * time.Second
	// logsTail is how long the last lines may take once the job has ended.
	logsTail = 5 * time.Second
)

func (j *attended) attend(ctx context.Context, r runFlags) error {
	last, err := j.follow(ctx, r.timeout)
	if ctx.Err() != nil || (r.remove && !r.keep) {
		// Also when interrupted, so on a context of its own.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		_, stop := j.fleet.StopWorkload(ctx, &redoubtv1.StopWorkloadRequest{Namespace: j.w.GetNamespace(), Name: j.w.GetName(), CommandId: commandID()})
		if stop != nil && status.Code(stop) != codes.NotFound {
			fmt.Fprintf(j.Stderr, "redoubt: %s could not be told to stop: %s; `redoubt stop %s` does it later\n", j.w.GetName(), plain(stop), j.w.GetName())
		}
	} else if err == nil {
		j.say("%s is kept; `redoubt logs %s` shows its output, `redoubt stop %s` forgets it.", j.w.GetName(), j.w.GetName(), j.w.GetName())
	}
	if err != nil {
		return err
	}
	switch st := last.GetStatus(); {
	case st.GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_SUCCEEDED:
		return nil
	case st.GetExitCode() > 0:
		// The code speaks for itself, unless the agent knows more than that: a
		// program that is not there, a memory limit that was reached.
		if m := st.GetMessage(); m != "" && m != fmt.Sprintf("exited with code %d", st.GetExitCode()) {
			return exitCode{code: int(st.GetExitCode()), err: fmt.Errorf("%s: %s", j.w.GetName(), m)}
		}
		return exitCode{code: int(st.GetExitCode())}
	default:
		return fmt.Errorf("%s did not run to its end: it is %s. %s", j.w.GetName(), phaseOf(last), st.GetMessage())
	}
}

// follow shows the job's output until it has ended, and returns its instance.
func (j *attended) follow(ctx context.Context, timeout time.Duration) (last *redoubtv1.Instance, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var (
		wg      sync.WaitGroup
		logs    chan struct{} // closed when the output of followed is all there
		ids     []string      // instances that were told of
		told    string
		started bool
		begun   = time.Now()
	)
	defer wg.Wait()
	defer cancel()
	err = j.fleet.watch(ctx, j.w.GetNamespace(), func(looking context.Context) (bool, error) {
		resp, err := j.fleet.GetWorkload(looking, &redoubtv1.GetWorkloadRequest{Namespace: j.w.GetNamespace(), Name: j.w.GetName()})
		if status.Code(err) == codes.NotFound {
			return false, fmt.Errorf("%s was stopped by somebody else", j.w.GetName())
		}
		if err != nil {
			return false, fmt.Errorf("run %s: %w", j.w.GetName(), err)
		}
		w := resp.GetWorkload()
		if w.GetStopping() {
			return false, fmt.Errorf("%s was stopped by somebody else", j.w.GetName())
		}
		if n := len(w.GetStatus().GetInstances()); n > 0 {
			last = w.GetStatus().GetInstances()[n-1] // a rejected one is followed by another
		}
		phase := last.GetStatus().GetPhase()
		switch {
		case last == nil || phase == redoubtv1.InstancePhase_INSTANCE_PHASE_REJECTED:
			why := w.GetStatus().GetWhy()
			if last.GetStatus().GetMessage() != "" {
				why = last.GetAssignment().GetNode() + " refused it: " + last.GetStatus().GetMessage()
			}
			if why != "" && why != told {
				j.say("%s", why)
				told = why
			}
		case phase == redoubtv1.InstancePhase_INSTANCE_PHASE_STARTING && last.GetStatus().GetMessage() != "" && last.GetStatus().GetMessage() != told:
			told = last.GetStatus().GetMessage()
			j.say("%s: %s", last.GetAssignment().GetInstance(), told)
		}
		if phase == redoubtv1.InstancePhase_INSTANCE_PHASE_BACKOFF {
			// It has one attempt, so this was no end of it: it could not begin. The
			// agent would try for ever; who waits wants to know.
			as := last.GetAssignment()
			return false, fmt.Errorf("%s could not start on %s under %s: %s; `redoubt events --workload %s` shows each step", as.GetInstance(), as.GetNode(), as.GetRuntime(), last.GetStatus().GetMessage(), j.w.GetName())
		}
		begins := last != nil && (phase == redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING ||
			phase == redoubtv1.InstancePhase_INSTANCE_PHASE_SUCCEEDED || phase == redoubtv1.InstancePhase_INSTANCE_PHASE_FAILED)
		if begins && !slices.Contains(ids, last.GetAssignment().GetUid()) {
			as := last.GetAssignment()
			ids = append(ids, as.GetUid())
			started = true
			j.say("%s on %s (%s): %s", as.GetInstance(), as.GetNode(), as.GetSite(), underWhat(as))
			done := make(chan struct{})
			logs = done
			wg.Go(func() {
				defer close(done)
				j.output(ctx, as.GetInstance())
			})
		}
		if !started && timeout > 0 && time.Since(begun) > timeout {
			return false, fmt.Errorf("%s has not started after %s: %s; give it a longer --timeout, or another --floor", j.w.GetName(), timeout, strings.TrimSuffix(w.GetStatus().GetWhy(), "."))
		}
		over := w.GetStatus().GetPhase()
		return over == redoubtv1.WorkloadPhase_WORKLOAD_PHASE_COMPLETED || over == redoubtv1.WorkloadPhase_WORKLOAD_PHASE_FAILED, nil
	})
	if err == nil && logs != nil {
		select {
		case <-logs:
		case <-time.After(logsTail):
			fmt.Fprintf(j.Stderr, "redoubt: the last of its output did not come within %s\n", logsTail)
		case <-ctx.Done():
		}
	}
	return last, err
}

// underWhat is why, with the isolation named first.
func underWhat(as *redoubtv1.Assignment) string {
	what := fmt.Sprintf("%s gives %s", runtimeName(as.GetRuntime(), as.GetVariant()), class(as.GetClass()))
	if strings.HasPrefix(as.GetWhy(), what) {
		return as.GetWhy()
	}
	if as.GetWhy() == "" {
		return what
	}
	return what + "; " + as.GetWhy()
}

// output copies what the instance writes, raw. Where the connection breaks it
// goes on where it was.
func (j *attended) output(ctx context.Context, instance string) {
	written := 0
	for tries := 0; ; tries++ {
		skip, again := written, false
		stream, err := j.fleet.Logs(ctx, &redoubtv1.LogsRequest{Namespace: j.w.GetNamespace(), Name: instance, Follow: true, Tail: -1})
		for err == nil {
			var m *redoubtv1.LogsResponse
			if m, err = stream.Recv(); err != nil {
				break
			}
			if m.GetError() != "" {
				err = errors.New(m.GetError())
				break
			}
			data := m.GetData()
			if skip > 0 {
				n := min(skip, len(data))
				skip, data = skip-n, data[n:]
			}
			if _, werr := j.Stdout.Write(data); werr != nil {
				return // nobody reads on
			}
			written += len(data)
			tries = 0
		}
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return
		}
		if again = tries < 10; !again {
			fmt.Fprintf(j.Stderr, "redoubt: logs of %s: %s\n", instance, plain(err))
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(between * 2):
		}
	}
}
