package fleet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// WorkloadFromProto checks a workload as a person wrote it and fills in every
// default. The error is an *InvalidWorkload with all that is wrong. What it
// returns shares nothing with p.
func WorkloadFromProto(p *redoubtv1.Workload) (Workload, error) {
	r := &reader{}
	w := r.workload(p)
	if len(r.errs) > 0 {
		return Workload{}, &InvalidWorkload{Name: clip(p.GetName()), Fields: r.errs}
	}
	return w, nil
}

// NewWorkload is WorkloadFromProto for what somebody asks for now. It also refuses
// what an earlier version took and no node can do. That must go on being read:
// it may be in the log, and all servers must judge an entry of the log alike.
func NewWorkload(p *redoubtv1.Workload) (Workload, error) {
	w, err := WorkloadFromProto(p)
	if err != nil {
		return w, err
	}
	r := &reader{}
	for i, c := range w.Containers {
		for j, o := range c.Ports {
			if o.HostIP.IsValid() && !o.HostIP.Is4() {
				r.fail(fmt.Sprintf("containers[%d].ports[%d].hostIP", i, j), "%q is IPv6, and nodes publish ports on IPv4 addresses only; name an IPv4 address of the node, or remove it to publish on all of them", o.HostIP)
			}
		}
	}
	if len(r.errs) > 0 {
		return Workload{}, &InvalidWorkload{Name: clip(p.GetName()), Fields: r.errs}
	}
	return w, nil
}

// Proto writes w with every default spelled out; WorkloadFromProto reads the
// same value back.
func (w Workload) Proto() *redoubtv1.Workload {
	p := &redoubtv1.Workload{
		Kind: string(w.Kind), Namespace: w.Namespace, Name: w.Name,
		Isolation: &redoubtv1.Isolation{
			Floor: w.Isolation.Floor.String(), Prefer: PreferWord(w.Isolation.Prefer), OnUnavailable: "Degrade",
		},
		Placement: &redoubtv1.Placement{
			Sites:   slices.Clone(w.Placement.Sites),
			PerSite: toUint32(w.Placement.PerSite), Replicas: toUint32(w.Placement.Replicas),
		},
		Disconnect: &redoubtv1.Disconnect{
			LostAfter: formatDuration(w.Disconnect.LostAfter), Replace: string(w.Disconnect.Replace),
		},
		RestartPolicy:                 string(w.Restart),
		TerminationGracePeriodSeconds: new(int64),
		Network:                       string(w.Network),
		NetworkRules:                  w.Rules.proto(),
	}
	*p.TerminationGracePeriodSeconds = int64(w.GracePeriod / time.Second)
	if w.Isolation.Pend {
		p.Isolation.OnUnavailable = "Pend"
	}
	if w.Disconnect.StopAfter > 0 {
		p.Disconnect.StopAfter = formatDuration(w.Disconnect.StopAfter)
	}
	if len(w.Labels) > 0 {
		p.Labels = make(map[string]string, len(w.Labels))
		for k, v := range w.Labels {
			p.Labels[k] = v
		}
	}
	if j := w.Job; j != nil {
		p.Job = &redoubtv1.Job{
			Completions: toUint32(&j.Completions), Parallelism: toUint32(&j.Parallelism), BackoffLimit: toUint32(&j.BackoffLimit),
		}
	}
	for _, c := range w.Containers {
		p.Containers = append(p.Containers, containerProto(c))
	}
	for _, v := range w.Volumes {
		q := &redoubtv1.Volume{Name: v.Name}
		if v.Memory {
			q.EmptyDir = &redoubtv1.EmptyDir{Medium: "Memory"}
			if v.Size > 0 {
				q.EmptyDir.SizeLimit = FormatMemory(v.Size)
			}
		} else {
			q.HostPath = &redoubtv1.HostPath{Path: v.HostPath}
		}
		p.Volumes = append(p.Volumes, q)
	}
	return p
}

func containerProto(c Container) *redoubtv1.Container {
	p := &redoubtv1.Container{
		Name: c.Name, Image: c.Image, ImagePullPolicy: string(c.Pull),
		Command: slices.Clone(c.Command), Args: slices.Clone(c.Args), WorkingDir: c.WorkingDir,
		Resources: &redoubtv1.Resources{
			Limits: map[string]string{
				"memory": FormatMemory(c.Resources.MemoryLimit), "pids": fmt.Sprint(c.Resources.PidsLimit),
			},
			Requests: map[string]string{
				"cpu": FormatCPU(c.Resources.CPURequest), "memory": FormatMemory(c.Resources.MemoryRequest),
			},
		},
	}
	if c.Resources.CPULimit > 0 {
		p.Resources.Limits["cpu"] = FormatCPU(c.Resources.CPULimit)
	}
	for _, e := range c.Env {
		p.Env = append(p.Env, &redoubtv1.EnvVar{Name: e.Name, Value: e.Value})
	}
	for _, o := range c.Ports {
		q := &redoubtv1.ContainerPort{
			Name: o.Name, ContainerPort: uint32(o.Container), HostPort: uint32(o.Host), Protocol: o.Protocol,
		}
		if o.HostIP.IsValid() {
			q.HostIp = o.HostIP.String()
		}
		p.Ports = append(p.Ports, q)
	}
	p.LivenessProbe, p.ReadinessProbe, p.StartupProbe = c.Liveness.proto(), c.Readiness.proto(), c.Startup.proto()
	for _, m := range c.Mounts {
		p.VolumeMounts = append(p.VolumeMounts, &redoubtv1.VolumeMount{Name: m.Name, MountPath: m.Path, ReadOnly: m.ReadOnly})
	}
	s := c.Security
	if s.RunAsUser != nil || s.RunAsGroup != nil || s.ReadOnlyRoot || len(s.AddCapabilities)+len(s.DropCapabilities) > 0 {
		p.SecurityContext = &redoubtv1.SecurityContext{
			RunAsUser: clonePtr(s.RunAsUser), RunAsGroup: clonePtr(s.RunAsGroup), ReadOnlyRootFilesystem: s.ReadOnlyRoot,
		}
		if len(s.AddCapabilities)+len(s.DropCapabilities) > 0 {
			p.SecurityContext.Capabilities = &redoubtv1.Capabilities{
				Add: slices.Clone(s.AddCapabilities), Drop: slices.Clone(s.DropCapabilities),
			}
		}
	}
	return p
}

// PreferWord is the word of a file for IsolationSpec.Prefer.
func PreferWord(c isolation.Class) string {
	if c == isolation.ClassUnknown {
		return "strongest"
	}
	return c.String()
}

func toUint32(p *int) *uint32 {
	if p == nil {
		return nil
	}
	v := uint32(*p)
	return &v
}

// formatDuration writes "5m" where time.Duration says "5m0s".
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// reader turns a message into a Workload and collects what is wrong with it.
type reader struct{ errs []FieldError }

func (r *reader) fail(path, format string, args ...any) {
	r.errs = append(r.errs, FieldError{Path: path, Problem: fmt.Sprintf(format, args...)})
}

// word checks s against words; "" gives the default.
func (r *reader) word(path, s, def string, words []string) string {
	if s == "" {
		return def
	}
	if !isWord(s, words) {
		hint := ""
		if n := Nearest(s, words); n != "" {
			hint = fmt.Sprintf(". Did you mean %q?", n)
		}
		r.fail(path, "%q is not %s%s", clip(s), oneOf(words), hint)
		return def
	}
	return s
}

func (r *reader) class(path, s string, def isolation.Class, words []string) isolation.Class {
	c, err := isolation.ParseClass(r.word(path, s, def.String(), words))
	if err != nil {
		return def
	}
	return c
}

// between checks a whole number against its range.
func (r *reader) between(path string, v, low, high int64) {
	if v < low || v > high {
		r.fail(path, "%d is out of range: %d to %d", v, low, high)
	}
}

func (r *reader) count(path string, p *uint32, low, high int64) *int {
	if p == nil {
		return nil
	}
	r.between(path, int64(*p), low, high)
	v := int(*p)
	return &v
}

func (r *reader) duration(path, s string, def, low, high time.Duration) time.Duration {
	if s == "" {
		return def
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		hint := `write a number with a unit: "90s", "5m", "2h"`
		if n := strings.TrimSpace(s); n != "" && strings.Trim(n, "0123456789") == "" {
			hint = fmt.Sprintf("it has no unit: did you mean \"%ss\"?", n)
		}
		r.fail(path, "%q is not a duration; %s", clip(s), hint)
		return def
	}
	if d < low || d > high {
		r.fail(path, "%s is out of range: %s to %s", formatDuration(d), formatDuration(low), formatDuration(high))
		return def
	}
	return d
}

func (r *reader) hostIP(path, s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		r.fail(path, "%q is not an IP address", clip(s))
		return netip.Addr{}
	}
	return a.Unmap()
}
