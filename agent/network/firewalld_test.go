package network

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// firewalld is a real one in a world's node, on a bus of its own.
type firewalld struct {
	operator
	serve *exec.Cmd
}

func (w *world) firewalld() *firewalld {
	w.t.Helper()
	f := &firewalld{operator: w.operator()}
	lib := strings.Join(must(filepath.Glob(f.root+"/usr/lib/*-linux-gnu")), ":")
	f.env = append(f.env,
		"DBUS_SYSTEM_BUS_ADDRESS=unix:path="+f.dir+"/bus",
		"PYTHONPATH="+f.root+"/usr/lib/python3/dist-packages", "PYTHONDONTWRITEBYTECODE=1",
		"GI_TYPELIB_PATH="+lib+"/girepository-1.0",
	)
	python := "/usr/bin/python3"
	if _, err := os.Stat(python); err != nil {
		python = f.root + python
	}
	// As an operator types it.
	w.ok(os.WriteFile(f.dir+"/firewall-cmd", fmt.Appendf(nil, "#!/bin/sh\nexec %s %s/usr/bin/firewall-cmd \"$@\"\n", python, f.root), 0o755))
	w.ok(os.WriteFile(f.dir+"/firewalld", fmt.Appendf(nil, "#!/bin/sh\nexec %s %s/usr/sbin/firewalld \"$@\"\n", python, f.root), 0o755))
	w.ok(os.WriteFile(f.dir+"/bus.conf", fmt.Appendf(nil, `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
<type>custom</type><listen>unix:path=%s/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="root"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/></policy>
</busconfig>`, f.dir), 0o644))
	w.ok(os.MkdirAll(f.dir+"/etc", 0o755))
	f.spawn(f.root+"/usr/bin/dbus-daemon", "--config-file="+f.dir+"/bus.conf", "--nofork", "--nopidfile")
	w.eventually("a bus", func() bool { _, err := os.Stat(f.dir + "/bus"); return err == nil })
	return f
}

// spawn starts a program in the node, until the test ends.
func (f *firewalld) spawn(name string, args ...string) *exec.Cmd {
	f.w.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env, cmd.Dir = f.env, f.dir
	cmd.Stdout, cmd.Stderr = testWriter{f.w.t}, testWriter{f.w.t}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	f.w.ok(f.w.node.do(cmd.Start))
	f.w.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func (f *firewalld) start() {
	f.w.t.Helper()
	f.serve = f.spawn(f.dir+"/firewalld", "--nofork", "--nopid",
		"--default-config", f.root+"/usr/lib/firewalld", "--system-config", f.dir+"/etc", "--log-target", "console")
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		out, err := f.sh("firewall-cmd --state")
		if err == nil {
			return
		}
		if time.Now().After(end) {
			f.w.t.Fatal("firewalld does not come up:", out)
		}
	}
}

// stop ends it as systemd would; it takes its rules away.
func (f *firewalld) stop() {
	f.w.t.Helper()
	f.w.ok(f.serve.Process.Signal(syscall.SIGTERM))
	f.serve.Wait()
}

// A published port is reached, and what firewalld's default zone rejects is told
// with the command that lets it through; with that everything works, over
// reloads and restarts of firewalld, and neither touches the other's rules.
func TestBesideARealFirewalld(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := w.firewalld()
	f.start()
	theirs := f.foreign()
	if !strings.Contains(theirs, "table inet firewalld") {
		t.Fatalf("firewalld has no table:\n%s", theirs)
	}
	n := w.open()
	_, a := w.attach(n, Spec{Instance: "web-1", Ports: somePorts(1)})
	_, b := w.attach(n, Spec{Instance: "web-2", Ports: somePorts(2)})
	w.serve(a, "web", "0.0.0.0:80")
	w.serve(w.outside, "outside", "0.0.0.0:9000")
	w.serve(w.node, "host", "0.0.0.0:7000")
	w.run(n)
	published := func() {
		t.Helper()
		if got, err := w.call(w.outside, "tcp4", "192.0.2.2:18001", 5*time.Second); err != nil || got != "web 192.0.2.1" {
			t.Errorf("published port: %q, %v", got, err)
		}
	}
	// What our own rules close stays closed, whatever firewalld lets through.
	closed := func() {
		t.Helper()
		w.refuse(a, "192.0.2.2:7000")
		w.refuse(b, n.Attached()["web-1"].Address.String()+":80")
	}
	works := func(when string) {
		t.Helper()
		w.eventually("egress "+when, func() bool {
			got, err := w.call(a, "tcp4", "192.0.2.1:9000", time.Second)
			return err == nil && got == "outside 192.0.2.2"
		})
		w.eventually("names "+when, func() bool { return w.resolves(a, n) })
		published()
	}

	published()
	closed()
	warning := w.warning(n, "table inet firewalld")
	for _, want := range []string{
		"the instances' connections to elsewhere (chain filter_FWD_public)", "the instances' questions for names (chain filter_IN_public)",
		"firewall-cmd --permanent --zone=trusted --add-interface=" + n.names.host,
	} {
		if !strings.Contains(warning, want) {
			t.Errorf("the warning does not say %q:\n%s", want, warning)
		}
	}
	if strings.Contains(warning, "published port") {
		t.Errorf("a published port is reached, and the warning says that it is not:\n%s", warning)
	}
	if got, err := w.call(a, "tcp4", "192.0.2.1:9000", time.Second); err == nil {
		t.Errorf("firewalld lets %q out: the warning is wrong", got)
	}
	if w.resolves(a, n) {
		t.Error("firewalld lets questions for names in: the warning is wrong")
	}
	if diff := cmp.Diff(theirs, f.foreign()); diff != "" {
		t.Errorf("firewalld's rules are not as they were (-before +after):\n%s", diff)
	}

	f.must(remedyOf(t, warning))
	works("after the remedy")
	closed()
	w.warning(n, "")
	theirs = f.foreign()
	for _, command := range []string{"firewall-cmd --reload", "firewall-cmd --complete-reload"} {
		f.must(command)
		works("after " + command)
		if diff := cmp.Diff(theirs, f.foreign()); diff != "" {
			t.Errorf("%s: firewalld's rules (-before +after):\n%s", command, diff)
		}
	}
	f.stop()
	works("without firewalld")
	w.ok(n.converge(context.Background()))
	w.consistent(n)
	f.start() // after us
	works("when firewalld came later")
	closed()
	w.warning(n, "")
	if diff := cmp.Diff(theirs, f.foreign()); diff != "" {
		t.Errorf("firewalld that came later (-before +after):\n%s", diff)
	}
	w.ok(n.Teardown(context.Background()))
	if diff := cmp.Diff(theirs, f.foreign()); diff != "" {
		t.Errorf("teardown changed firewalld's rules (-before +after):\n%s", diff)
	}
}
