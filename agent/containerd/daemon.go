package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/agent/driver"
)

const (
	probeEvery  = time.Second      // a daemon that has not answered
	restEvery   = 5 * time.Second  // one that has; its end is seen at once
	probeFor    = 3 * time.Second  // how long one question may take
	silentFor   = 15 * time.Second // then a daemon that runs counts as hung
	startFor    = 30 * time.Second // until a new daemon must have answered once
	endFor      = 5 * time.Second  // until a daemon that is told to end is killed
	restartWait = 500 * time.Millisecond
	restartMax  = 5 * time.Second
	daemonLog   = 8 * mebi
)

// Daemon keeps the node's containerd running. Run must be running for the
// others to be of use; all methods are safe for concurrent use.
type Daemon struct {
	cfg Config
	log *slog.Logger

	mu       sync.Mutex
	proc     process // zero: none is known
	stopping bool    // set for good by Shutdown
}

// NewDaemon checks the configuration. Nothing is started.
func NewDaemon(cfg Config) (*Daemon, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Daemon{cfg: cfg, log: cfg.Log.With("node", string(cfg.Node))}, nil
}

// Address is the socket that clients dial.
func (d *Daemon) Address() string { return d.cfg.address() }

// Pid is the running daemon's, 0 if none is known or the host's is used.
func (d *Daemon) Pid() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.proc.Pid
}

// Run adopts the daemon of an earlier run or starts one, and starts it again
// when it dies or stops answering. One that was started from another program,
// with another shim or configuration, as by an agent of another version, is
// ended first and its own started: containers run on under their shims. When ctx
// ends Run returns, and the daemon stays: containers outlive the agent. It returns
// an error only if the directory is in use by another agent or cannot be used.
func (d *Daemon) Run(ctx context.Context) error {
	if d.cfg.HostAddress != "" {
		<-ctx.Done()
		return nil
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.prepare(); err != nil {
		return err
	}
	if p, ok := d.find(); ok {
		if why := d.outdated(p); why != "" {
			// Nothing is started meanwhile, and what runs has its shims.
			d.log.Info("the running containerd is replaced; containers run on", "pid", p.Pid, "cause", why)
			_ = p.signal(unix.SIGTERM)
			if !p.wait(endFor) {
				_ = p.signal(unix.SIGKILL)
				p.wait(endFor)
			}
		} else {
			d.log.Info("adopted the running containerd", "pid", p.Pid)
			d.set(p)
		}
	}
	// Only now: until it has ended, the file says what a daemon was started with.
	if err := writeFile(d.configPath(), []byte(d.configText()), 0o600); err != nil {
		return fmt.Errorf("containerd: write its configuration: %w", err)
	}
	wait := restartWait
	for {
		began := time.Now()
		err := d.tend(ctx)
		if ctx.Err() != nil || d.isStopping() {
			return nil
		}
		if time.Since(began) > 10*time.Second {
			wait = restartWait
		}
		d.log.Warn("containerd is started again", "cause", err, "in", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(2*wait, restartMax)
	}
}

// tend starts a daemon unless one is known and watches it until it is gone.
func (d *Daemon) tend(ctx context.Context) error {
	answered := time.Now()
	patience := silentFor
	if p := d.current(); !p.alive() {
		if err := d.start(); err != nil {
			return err
		}
		patience = startFor
	}
	client, err := d.client()
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		p := d.current()
		switch {
		case d.isStopping():
			return nil
		case !p.alive():
			return fmt.Errorf("containerd (pid %d) ended; its log is %s", p.Pid, d.logPath())
		}
		wait := probeEvery
		if d.answers(ctx, client) {
			answered, patience, wait = time.Now(), silentFor, restEvery
		} else if time.Since(answered) > patience {
			_ = p.signal(unix.SIGKILL)
			p.wait(5 * time.Second)
			return fmt.Errorf("containerd (pid %d) did not answer for %v and was killed; its log is %s", p.Pid, patience, d.logPath())
		}
		pause, cancel := context.WithTimeout(ctx, wait)
		p.gone(pause)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (d *Daemon) client() (*containerd.Client, error) { return dial(d.cfg) }

func (d *Daemon) answers(ctx context.Context, client *containerd.Client) bool {
	ctx, cancel := context.WithTimeout(ctx, probeFor)
	defer cancel()
	_, err := client.Version(ctx)
	return err == nil
}

// Ready waits until the daemon answers.
func (d *Daemon) Ready(ctx context.Context) error {
	client, err := d.client()
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		if d.answers(ctx, client) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("containerd at %s: %w: %w; its log is %s", d.cfg.address(), driver.ErrUnavailable, context.Cause(ctx), d.logPath())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// prepare makes the directories that the daemon needs.
func (d *Daemon) prepare() error {
	run := d.cfg.runDir()
	for _, dir := range []string{d.cfg.Dir, filepath.Join(d.cfg.Dir, "root"), runRoot, run, run + "/state", run + "/s", run + "/r", run + "/fifo"} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("containerd: make its directories: %w", err)
		}
	}
	// Whoever reads the run directory can find out whose it is.
	if err := writeFile(run+"/owner", []byte(string(d.cfg.Node)+" "+d.cfg.Dir+"\n"), 0o600); err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	return nil
}

// configText is the daemon's configuration.
func (d *Daemon) configText() string {
	run := d.cfg.runDir()
	// Version 2 of the format is what every containerd in use still reads.
	// imports must be empty, or the host's drop-in files are read.
	return fmt.Sprintf(`version = 2
root = %q
state = %q
imports = []
oom_score = -999
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
  address = %q

[ttrpc]
  address = %q

[plugins."io.containerd.shim.v1.manager"]
  socket_dir = %q
`, filepath.Join(d.cfg.Dir, "root"), run+"/state", d.cfg.address(), d.cfg.address()+".ttrpc", run+"/s")
}

func (d *Daemon) configPath() string { return filepath.Join(d.cfg.Dir, "config.toml") }
func (d *Daemon) pidPath() string    { return filepath.Join(d.cfg.Dir, "containerd.pid") }
func (d *Daemon) logPath() string    { return filepath.Join(d.cfg.Dir, "containerd.log") }

// start starts the daemon in a session of its own, so that nothing that ends
// the agent ends it.
func (d *Daemon) start() error {
	if info, err := os.Stat(d.logPath()); err == nil && info.Size() > daemonLog {
		_ = os.Rename(d.logPath(), d.logPath()+".1")
	}
	out, err := os.OpenFile(d.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("containerd: open its log: %w", err)
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	cmd := &exec.Cmd{
		Path: d.cfg.Binaries.Containerd,
		Args: []string{d.cfg.Binaries.Containerd, "--config", d.configPath()},
		Dir:  "/",
		Env: []string{
			// It finds the shim here, and the shim nothing that it needs.
			"PATH=" + filepath.Dir(d.cfg.Binaries.Shim) + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"HOME=/root", "TMPDIR=" + os.TempDir(),
		},
		Stdin: null, Stdout: out, Stderr: out,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("containerd: start %s: %w", cmd.Path, err)
	}
	p, err := findProcess(cmd.Process.Pid)
	// Someone must reap it while this agent lives; without one it would stay a
	// zombie. The goroutine ends with the daemon, which may be after Run.
	go func() { _ = cmd.Wait() }()
	if err != nil {
		return fmt.Errorf("containerd ended at once; its log is %s", d.logPath())
	}
	record, _ := json.Marshal(pidRecord{p, bootID()})
	if err := writeFile(d.pidPath(), record, 0o600); err != nil {
		_ = p.signal(unix.SIGKILL)
		return fmt.Errorf("containerd: note its pid: %w", err)
	}
	d.set(p)
	d.log.Info("started containerd", "pid", p.Pid)
	return nil
}

type pidRecord struct {
	process
	Boot string
}

// find looks for a daemon that an earlier agent started: by the pid noted, or,
// if that note was lost, by what runs on our configuration. The same path may be
// another directory to a process that sees other mounts, as another node's in a
// container of its own does.
func (d *Daemon) find() (process, bool) {
	var r pidRecord
	if data, err := os.ReadFile(d.pidPath()); err == nil && json.Unmarshal(data, &r) == nil {
		if r.Boot == bootID() && r.process.alive() {
			return r.process, true
		}
	}
	var found process
	hostProcesses(func(pid int, args []string) {
		if filepath.Base(args[0]) == "containerd" && flagValue(args, "--config") == d.configPath() && seesDir(pid, d.cfg.Dir) {
			if p, err := findProcess(pid); err == nil {
				found = p
			}
		}
	})
	return found, found.Pid != 0
}

// lock keeps a second agent off the directory for as long as this one runs.
func (d *Daemon) lock() (func(), error) {
	if err := os.MkdirAll(d.cfg.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("containerd: %w", err)
	}
	path := filepath.Join(d.cfg.Dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("containerd: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("containerd: directory %s is in use by another agent: stop that one or choose another directory", d.cfg.Dir)
	}
	return func() { f.Close() }, nil
}

func (d *Daemon) current() process {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.proc
}

func (d *Daemon) set(p process) {
	d.mu.Lock()
	d.proc = p
	d.mu.Unlock()
}

func (d *Daemon) isStopping() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stopping
}

// Shutdown ends every container of the node, the daemon and all that they left
// on the host: shims, mounts, sockets, control groups, the run directory.
// Config.Dir stays, with images and database; whoever purges removes it. It
// works without Run, after a crash too, and may be repeated; no other process
// may be running Run for the same directory. The Daemon is of no use after.
func (d *Daemon) Shutdown(ctx context.Context) error {
	d.mu.Lock()
	d.stopping = true
	d.mu.Unlock()

	p := d.current()
	if !p.alive() {
		p, _ = d.find()
	}
	s, err := newSweeper(d.cfg)
	if err != nil {
		return err
	}
	var errs []error
	if p.alive() || d.cfg.HostAddress != "" {
		if err := d.deleteAll(ctx); err != nil {
			// Not the end: what it could not do is done by force below.
			d.log.Warn("containers are ended by force", "cause", err)
		}
	}
	if p.alive() {
		_ = p.signal(unix.SIGTERM)
		if !p.wait(5 * time.Second) {
			_ = p.signal(unix.SIGKILL)
			if !p.wait(5 * time.Second) {
				errs = append(errs, fmt.Errorf("containerd (pid %d) does not die", p.Pid))
			}
		}
	}
	errs = append(errs, s.all())
	errs = append(errs, unmountBelow(d.cfg.runDir()), os.RemoveAll(d.cfg.runDir()))
	_ = os.Remove(runRoot) // only when the last node's is gone
	if d.cfg.HostAddress == "" {
		errs = append(errs, unmountBelow(filepath.Join(d.cfg.Dir, "root")))
		if err := os.Remove(d.pidPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("containerd: shut down: %w", err)
	}
	return nil
}

// deleteAll deletes containers in the orderly way, as long as that works.
func (d *Daemon) deleteAll(ctx context.Context) error {
	drv, err := NewDriver(d.cfg)
	if err != nil {
		return err
	}
	defer drv.Close()
	list, err := drv.List(ctx)
	if err != nil {
		return err
	}
	work := make(chan driver.ID)
	fail := make(chan error, len(list))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for id := range work {
				if err := drv.Delete(ctx, id); err != nil {
					fail <- err
				}
			}
		})
	}
	for _, c := range list {
		work <- c.ID
	}
	close(work)
	wg.Wait()
	close(fail)
	var errs []error
	for err := range fail {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
