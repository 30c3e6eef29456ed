package agent

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/reconcile"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// What the control plane fills in and an agent falls back on.
const (
	defaultGrace        = 10 * time.Second
	defaultMemory       = 128 << 20
	defaultPids         = 256
	defaultBackoffLimit = 3
)

// readSpec fills in what a workload asks for.
func readSpec(a *reconcile.Assignment, w *redoubtv1.Workload) error {
	if n := len(w.GetContainers()); n != 1 {
		return fmt.Errorf("containers: there are %d, an instance has one", n)
	}
	c := w.GetContainers()[0]
	switch w.GetKind() {
	case "Service", "":
	case "Job":
		a.Job, a.Restart, a.BackoffLimit = true, reconcile.OnFailure, defaultBackoffLimit
		if l := w.GetJob(); l != nil && l.BackoffLimit != nil {
			a.BackoffLimit = l.GetBackoffLimit()
		}
	default:
		return fmt.Errorf("kind: %q is not known", w.GetKind())
	}
	switch w.GetRestartPolicy() {
	case "":
	case "Always":
		a.Restart = reconcile.Always
	case "OnFailure":
		a.Restart = reconcile.OnFailure
	case "Never":
		a.Restart = reconcile.Never
	default:
		return fmt.Errorf("restartPolicy: %q is not known", w.GetRestartPolicy())
	}
	a.Grace = defaultGrace
	if w.TerminationGracePeriodSeconds != nil {
		s := w.GetTerminationGracePeriodSeconds()
		if s < 0 || s > 24*3600 {
			return fmt.Errorf("terminationGracePeriodSeconds: %d is out of range", s)
		}
		a.Grace = time.Duration(s) * time.Second
	}
	switch d := w.GetDisconnect(); d.GetReplace() {
	case "", "Eager", "Never":
	case "Safe":
		after, err := time.ParseDuration(d.GetStopAfter())
		if err != nil || after <= 0 {
			return fmt.Errorf("disconnect.stopAfter: %q is not a duration, which replace Safe needs", d.GetStopAfter())
		}
		a.StopAfter = after
	default:
		return fmt.Errorf("disconnect.replace: %q is not known", d.GetReplace())
	}
	switch w.GetNetwork() {
	case "", "bridge", "rules": // rules: bridge, and networkRules must be known
	case "none":
		a.NoNetwork = true
	default:
		return fmt.Errorf("network: %q is not known", w.GetNetwork())
	}
	if err := readNetworkRules(&a.NetworkRules, w.GetNetworkRules()); err != nil {
		return err
	}
	a.PullPolicy = c.GetImagePullPolicy()
	if a.PullPolicy == "" {
		a.PullPolicy = driver.PullIfNotPresent
	}
	a.Container = driver.Spec{
		Image: c.GetImage(), Command: c.GetCommand(), Args: c.GetArgs(), WorkingDir: c.GetWorkingDir(),
		ReadOnlyRoot: c.GetSecurityContext().GetReadOnlyRootFilesystem(),
	}
	for _, e := range c.GetEnv() {
		a.Container.Env = append(a.Container.Env, e.GetName()+"="+e.GetValue())
	}
	for _, p := range c.GetPorts() {
		port, err := readPort(p)
		if err != nil {
			return err
		}
		a.Ports = append(a.Ports, port)
	}
	if err := readProbes(&a.Probes, c); err != nil {
		return err
	}
	if err := readLimits(&a.Container.Limits, c.GetResources()); err != nil {
		return err
	}
	if err := readSecurity(&a.Container, c.GetSecurityContext()); err != nil {
		return err
	}
	return readVolumes(&a.Container, w.GetVolumes(), c.GetVolumeMounts())
}

// readNetworkRules takes nothing that it does not understand: a rule that is
// left out would let more in or out than was asked.
func readNetworkRules(n *reconcile.NetworkRules, p *redoubtv1.NetworkRules) error {
	n.AllowFrom, n.Limited = p.GetAllowFrom(), p.GetNoEgress() || len(p.GetEgress()) > 0
	for i, e := range p.GetEgress() {
		to := reconcile.EgressRule{Protocol: strings.ToLower(e.GetProtocol())}
		var err error
		if to.CIDR, err = netip.ParsePrefix(e.GetCidr()); err != nil {
			return fmt.Errorf("network.egress[%d].cidr: %w", i, err)
		}
		for _, s := range e.GetPorts() {
			first, last, is := strings.Cut(s, "-")
			if !is {
				last = first
			}
			a, err1 := strconv.ParseUint(first, 10, 16)
			b, err2 := strconv.ParseUint(last, 10, 16)
			if err1 != nil || err2 != nil {
				return fmt.Errorf("network.egress[%d].ports: %q is not a range of ports", i, s)
			}
			to.Ports = append(to.Ports, reconcile.PortRange{First: uint16(a), Last: uint16(b)})
		}
		n.Egress = append(n.Egress, to)
	}
	return nil
}

func readPort(p *redoubtv1.ContainerPort) (reconcile.Port, error) {
	if p.GetContainerPort() == 0 || p.GetContainerPort() > math.MaxUint16 || p.GetHostPort() > math.MaxUint16 {
		return reconcile.Port{}, fmt.Errorf("ports: %d to %d is out of range", p.GetContainerPort(), p.GetHostPort())
	}
	proto := strings.ToLower(p.GetProtocol())
	if proto == "" {
		proto = "tcp"
	}
	if proto != "tcp" && proto != "udp" {
		return reconcile.Port{}, fmt.Errorf("ports: protocol %q is not known", p.GetProtocol())
	}
	return reconcile.Port{Container: uint16(p.GetContainerPort()), Host: uint16(p.GetHostPort()), HostIP: p.GetHostIp(), Protocol: proto}, nil
}

// readLimits: memory and pids are always bounded, by the limit, else by what
// was reserved, else by the default; cpu only where a limit is given.
func readLimits(l *driver.Limits, r *redoubtv1.Resources) (err error) {
	l.Memory, l.Pids = defaultMemory, defaultPids
	for name, q := range r.GetRequests() {
		if _, ok := r.GetLimits()["memory"]; name == "memory" && !ok {
			if l.Memory, err = memoryBytes(q); err != nil {
				return fmt.Errorf("resources.requests.memory: %w", err)
			}
		}
	}
	for name, q := range r.GetLimits() {
		switch name {
		case "cpu":
			l.CPUMillis, err = cpuMillis(q)
		case "memory":
			l.Memory, err = memoryBytes(q)
		case "pids":
			l.Pids, err = count(q)
		default:
			err = fmt.Errorf("not known")
		}
		if err != nil {
			return fmt.Errorf("resources.limits.%s: %w", name, err)
		}
	}
	return nil
}

func readSecurity(c *driver.Spec, s *redoubtv1.SecurityContext) error {
	if s == nil {
		return nil
	}
	switch {
	case s.RunAsUser != nil && s.RunAsGroup != nil:
		c.User = fmt.Sprintf("%d:%d", s.GetRunAsUser(), s.GetRunAsGroup())
	case s.RunAsUser != nil:
		c.User = fmt.Sprint(s.GetRunAsUser())
	case s.RunAsGroup != nil:
		return fmt.Errorf("securityContext.runAsGroup: it needs runAsUser")
	}
	for _, add := range s.GetCapabilities().GetAdd() {
		c.AddCapabilities = append(c.AddCapabilities, capability(add))
	}
	// The hardened default is already few; what a workload drops from it is
	// honoured by name.
	for _, drop := range s.GetCapabilities().GetDrop() {
		c.DropCapabilities = append(c.DropCapabilities, capability(drop))
	}
	return nil
}

func capability(s string) string {
	s = strings.ToUpper(s)
	if s == "ALL" || strings.HasPrefix(s, "CAP_") {
		return s
	}
	return "CAP_" + s
}

func readVolumes(c *driver.Spec, volumes []*redoubtv1.Volume, mounts []*redoubtv1.VolumeMount) error {
	byName := map[string]*redoubtv1.Volume{}
	for _, v := range volumes {
		byName[v.GetName()] = v
	}
	for _, m := range mounts {
		v := byName[m.GetName()]
		switch {
		case v.GetHostPath() != nil:
			c.Mounts = append(c.Mounts, driver.Mount{HostPath: v.GetHostPath().GetPath(), Path: m.GetMountPath(), ReadOnly: m.GetReadOnly()})
		case v.GetEmptyDir() != nil:
			t := driver.Tmpfs{Path: m.GetMountPath()}
			if s := v.GetEmptyDir().GetSizeLimit(); s != "" {
				size, err := memoryBytes(s)
				if err != nil {
					return fmt.Errorf("volumes: %s: sizeLimit: %w", v.GetName(), err)
				}
				t.Size = size
			}
			c.Tmpfs = append(c.Tmpfs, t)
		default:
			return fmt.Errorf("volumeMounts: %q names no volume that this agent knows", m.GetName())
		}
	}
	return nil
}
