package fleet

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

var (
	envPattern = pattern(`^[A-Za-z_.-][A-Za-z0-9_.-]*$`)
	// imagePattern: host[:port]/path:tag@digest, loosely; the registry client
	// has the last word.
	imagePattern = pattern(`^[a-z0-9]([a-zA-Z0-9._:/@+-]*[a-zA-Z0-9])?$`)
	// PodSpec's rule for the name of a port.
	portPattern = pattern(`^[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?$`)
)

func (r *reader) container(at string, p *redoubtv1.Container, w Workload) Container {
	c := Container{
		Name: oneWord(p.GetName(), w.Name), Image: p.GetImage(),
		Pull:    PullPolicy(r.word(at+".imagePullPolicy", p.GetImagePullPolicy(), string(PullIfNotPresent), PullWords)),
		Command: slices.Clone(p.GetCommand()), Args: slices.Clone(p.GetArgs()), WorkingDir: p.GetWorkingDir(),
	}
	if p.GetName() != "" {
		r.name(at+".name", p.GetName())
	}
	r.image(at+".image", c.Image)
	text := r.arguments(at+".command", c.Command) + r.arguments(at+".args", c.Args)
	c.Env = r.env(at+".env", p.GetEnv())
	for _, e := range c.Env {
		text += len(e.Name) + len(e.Value)
	}
	c.Ports = r.ports(at+".ports", p.GetPorts(), w.Network)
	text += r.probes(at, p, &c, w)
	if text > MaxSpecText {
		r.fail(at, "command, args, env and probes have %d KiB together, the limit is %d; put large data into a volume or the image", text>>10, MaxSpecText>>10)
	}
	if c.WorkingDir != "" {
		r.path(at+".workingDir", c.WorkingDir)
	}
	c.Resources = r.resources(at+".resources", p.GetResources())
	c.Security = r.security(at+".securityContext", p.GetSecurityContext())
	c.Mounts = r.mounts(at+".volumeMounts", p.GetVolumeMounts(), w.Volumes)
	return c
}

func (r *reader) image(path, s string) {
	layout, isLayout := strings.CutPrefix(s, "oci:")
	switch {
	case s == "":
		r.fail(path, `is required, for example "registry.example/web:1" or "oci:/srv/web"`)
	case len(s) > MaxImageLength:
		r.fail(path, "is %d characters long, the limit is %d", len(s), MaxImageLength)
	case isLayout && !strings.HasPrefix(layout, "/"):
		r.fail(path, "%q: the folder of an OCI layout must be absolute: \"oci:/srv/web\"", clip(s))
	case isLayout && (strings.ContainsAny(s, "\x00\n") || slices.Contains(strings.Split(layout, "/"), "..")):
		r.fail(path, "%q is not a plain path", clip(s))
	case isLayout:
	case strings.Contains(s, "://"):
		r.fail(path, "%q is a URL; leave out %q", clip(s), s[:strings.Index(s, "://")+3])
	case !imagePattern().MatchString(s):
		r.fail(path, "%q is not an image reference", clip(s))
	}
}

func (r *reader) arguments(path string, list []string) (size int) {
	if len(list) > MaxArguments {
		r.fail(path, "has %d entries, the limit is %d", len(list), MaxArguments)
	}
	for i, s := range list {
		size += len(s)
		if len(s) > MaxArgumentLength {
			r.fail(fmt.Sprintf("%s[%d]", path, i), "is %d KiB long, the limit is %d", len(s)>>10, MaxArgumentLength>>10)
		} else if strings.ContainsRune(s, 0) {
			r.fail(fmt.Sprintf("%s[%d]", path, i), "has a NUL in it")
		}
	}
	return size
}

func (r *reader) env(path string, list []*redoubtv1.EnvVar) (env []EnvVar) {
	if len(list) > MaxEnv {
		r.fail(path, "has %d entries, the limit is %d", len(list), MaxEnv)
		return nil
	}
	seen := map[string]int{}
	for i, p := range list {
		at, name := fmt.Sprintf("%s[%d]", path, i), p.GetName()
		switch {
		case name == "":
			r.fail(at+".name", "is required")
		case len(name) > MaxEnvNameLength || !envPattern().MatchString(name):
			r.fail(at+".name", "%q is not a variable's name: letters, digits, \"_\", \".\" and \"-\", no digit first", clip(name))
		default:
			if first, ok := seen[name]; ok {
				r.fail(at+".name", "%q is set twice, first in env[%d]", name, first)
			} else {
				seen[name] = i
			}
		}
		if len(p.GetValue()) > MaxEnvValueLength {
			r.fail(at+".value", "is %d KiB long, the limit is %d", len(p.GetValue())>>10, MaxEnvValueLength>>10)
		} else if strings.ContainsRune(p.GetValue(), 0) {
			r.fail(at+".value", "has a NUL in it")
		}
		env = append(env, EnvVar{Name: name, Value: p.GetValue()})
	}
	return env
}

func (r *reader) ports(path string, list []*redoubtv1.ContainerPort, n Network) (ports []Port) {
	if len(list) > MaxPorts {
		r.fail(path, "has %d entries, the limit is %d", len(list), MaxPorts)
		return nil
	}
	if n == NetworkNone && len(list) > 0 {
		r.fail(path, "cannot be reached with network none; remove them or set network: bridge")
	}
	for i, p := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		if p.GetContainerPort() == 0 {
			r.fail(at+".containerPort", "is required: 1 to 65535")
		} else {
			r.between(at+".containerPort", int64(p.GetContainerPort()), 1, 65535)
		}
		r.between(at+".hostPort", int64(p.GetHostPort()), 0, 65535)
		o := Port{
			Name: p.GetName(), Container: uint16(p.GetContainerPort()), Host: uint16(p.GetHostPort()),
			HostIP:   r.hostIP(at+".hostIP", p.GetHostIp()),
			Protocol: r.word(at+".protocol", p.GetProtocol(), "TCP", ProtocolWords),
		}
		if o.Name != "" && !portPattern().MatchString(o.Name) {
			r.fail(at+".name", "%q is not a port's name: 1 to 15 of a-z, 0-9 and \"-\" between them", clip(o.Name))
		}
		if o.HostIP.IsValid() && o.Host == 0 {
			r.fail(at+".hostIP", "has no effect without hostPort")
		}
		for j, q := range ports {
			first := fmt.Sprintf("first in ports[%d]", j)
			if o.Name != "" && o.Name == q.Name {
				r.fail(at+".name", "%q is taken, %s", clip(o.Name), first)
			}
			if o.Host != 0 && (HostPort{o.HostIP, o.Host, o.Protocol}).Overlaps(HostPort{q.HostIP, q.Host, q.Protocol}) {
				r.fail(at+".hostPort", "%d is published twice, %s", o.Host, first)
			} else if o.Container == q.Container && o.Protocol == q.Protocol && o.Host == q.Host && o.Container != 0 {
				r.fail(at+".containerPort", "%d is named twice, %s", o.Container, first)
			}
		}
		ports = append(ports, o)
	}
	return ports
}

// resources reads limits and requests. Memory that is not stated is
// DefaultMemory; of limit and request, one gives the other.
func (r *reader) resources(path string, p *redoubtv1.Resources) Resources {
	res := Resources{CPURequest: DefaultCPUMillis, MemoryRequest: DefaultMemory, MemoryLimit: DefaultMemory, PidsLimit: DefaultPids}
	limits, requests := p.GetLimits(), p.GetRequests()
	r.resourceKeys(path+".limits", limits, LimitWords)
	r.resourceKeys(path+".requests", requests, RequestWords)

	cpuLimit, hasCPULimit := limits["cpu"]
	if hasCPULimit {
		res.CPULimit = r.cpu(path+".limits.cpu", cpuLimit)
		res.CPURequest = res.CPULimit
	}
	if s, ok := requests["cpu"]; ok {
		res.CPURequest = r.cpu(path+".requests.cpu", s)
		if hasCPULimit && res.CPURequest > res.CPULimit {
			r.fail(path+".requests.cpu", "%s is more than the limit %s", FormatCPU(res.CPURequest), FormatCPU(res.CPULimit))
		}
	}
	memLimit, hasLimit := limits["memory"]
	memRequest, hasRequest := requests["memory"]
	if hasLimit {
		res.MemoryLimit = r.memory(path+".limits.memory", memLimit, MinMemory)
	}
	if hasRequest {
		res.MemoryRequest = r.memory(path+".requests.memory", memRequest, MinMemory)
	}
	switch {
	case hasLimit && !hasRequest:
		res.MemoryRequest = res.MemoryLimit
	case hasRequest && !hasLimit:
		res.MemoryLimit = res.MemoryRequest
	case res.MemoryLimit > 0 && res.MemoryRequest > res.MemoryLimit:
		r.fail(path+".requests.memory", "%s is more than the limit %s", FormatMemory(res.MemoryRequest), FormatMemory(res.MemoryLimit))
	}
	if s, ok := limits["pids"]; ok {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil || n < 1 || n > 1<<22 {
			r.fail(path+".limits.pids", "%q is not a number of processes: 1 to %d", clip(s), 1<<22)
		}
		res.PidsLimit = n
	}
	return res
}

func (r *reader) resourceKeys(path string, m map[string]string, words []string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if isWord(k, words) {
			continue
		}
		hint := ""
		if k == "pids" {
			hint = ": pids has a limit only"
		} else if n := Nearest(k, words); n != "" {
			hint = fmt.Sprintf(". Did you mean %q?", n)
		}
		r.fail(path+"."+clip(k), "is not %s%s", oneOf(words), hint)
	}
}

func (r *reader) cpu(path, s string) int64 {
	n, err := ParseCPU(s)
	if err != nil {
		r.fail(path, "%s", err)
		return 0
	}
	if n < 1 || n > MaxCPUMillis {
		r.fail(path, "%s is out of range: 1m to %s", FormatCPU(n), FormatCPU(MaxCPUMillis))
		return 0
	}
	return n
}

func (r *reader) security(path string, p *redoubtv1.SecurityContext) Security {
	var s Security
	if p == nil {
		return s
	}
	s.ReadOnlyRoot = p.GetReadOnlyRootFilesystem()
	if p.RunAsUser != nil {
		r.between(path+".runAsUser", *p.RunAsUser, 0, maxID)
		s.RunAsUser = clonePtr(p.RunAsUser)
	}
	if p.RunAsGroup != nil {
		r.between(path+".runAsGroup", *p.RunAsGroup, 0, maxID)
		s.RunAsGroup = clonePtr(p.RunAsGroup)
		if p.RunAsUser == nil {
			r.fail(path+".runAsGroup", "needs runAsUser beside it")
		}
	}
	s.AddCapabilities = r.capabilities(path+".capabilities.add", p.GetCapabilities().GetAdd(), false)
	s.DropCapabilities = r.capabilities(path+".capabilities.drop", p.GetCapabilities().GetDrop(), true)
	for _, c := range s.AddCapabilities {
		if slices.Contains(s.DropCapabilities, c) {
			r.fail(path+".capabilities", "%s is both added and dropped", c)
		}
	}
	return s
}

// capabilities accepts names with and without "CAP_"; drop takes ALL too.
func (r *reader) capabilities(path string, list []string, all bool) (caps []string) {
	for i, s := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		name := strings.TrimPrefix(s, "CAP_")
		switch {
		case name == "ALL" && all:
		case name == "ALL":
			r.fail(at, "ALL cannot be added; name the capabilities that are needed")
			continue
		case !isWord(name, CapabilityWords):
			hint := ""
			if n := Nearest(strings.TrimPrefix(strings.ToUpper(s), "CAP_"), CapabilityWords); n != "" {
				hint = fmt.Sprintf(". Did you mean %q?", n)
			}
			r.fail(at, "%q is not a capability of Linux%s", clip(s), hint)
			continue
		}
		if slices.Contains(caps, name) {
			r.fail(at, "%q is named twice", name)
			continue
		}
		caps = append(caps, name)
	}
	slices.Sort(caps)
	return caps
}

// ownPaths are what every container has of its own; nothing is mounted there.
var ownPaths = []string{"/proc", "/sys", "/dev"}

func (r *reader) mounts(path string, list []*redoubtv1.VolumeMount, volumes []Volume) (ms []VolumeMount) {
	if len(list) > MaxVolumes {
		r.fail(path, "has %d entries, the limit is %d", len(list), MaxVolumes)
		return nil
	}
	var names []string
	for _, v := range volumes {
		names = append(names, v.Name)
	}
	for i, p := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		m := VolumeMount{Name: p.GetName(), Path: p.GetMountPath(), ReadOnly: p.GetReadOnly()}
		if !isWord(m.Name, names) {
			hint := "; declare it in volumes"
			if n := Nearest(m.Name, names); n != "" {
				hint = fmt.Sprintf(". Did you mean %q?", n)
			}
			r.fail(at+".name", "there is no volume %q%s", clip(m.Name), hint)
		}
		r.path(at+".mountPath", m.Path)
		if m.Path == "/" || slices.ContainsFunc(ownPaths, func(own string) bool {
			return m.Path == own || strings.HasPrefix(m.Path, own+"/") && m.Path != "/dev/shm"
		}) {
			r.fail(at+".mountPath", "%q is the container's own; mount elsewhere", clip(m.Path))
		}
		for j, o := range ms {
			if o.Path == m.Path && m.Path != "" {
				r.fail(at+".mountPath", "%q is taken by volumeMounts[%d]", clip(m.Path), j)
			}
		}
		ms = append(ms, m)
	}
	return ms
}
