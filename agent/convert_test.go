package agent

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/reconcile"
	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func TestQuantities(t *testing.T) {
	for s, want := range map[string]int64{
		"64Mi": 64 << 20, "1Gi": 1 << 30, "1.5Ki": 1536, "2Ti": 2 << 40, "10k": 10_000, "64M": 64e6, "1G": 1e9, "3T": 3e12,
		"512": 512, "0.5": 1, "0": 0,
	} {
		if got, err := memoryBytes(s); err != nil || got != want {
			t.Errorf("memory %q is %d, %v; want %d", s, got, err, want)
		}
	}
	for s, want := range map[string]int64{"500m": 500, "0.5": 500, "2": 2000, "1.25": 1250, "0.0001": 1} {
		if got, err := cpuMillis(s); err != nil || got != want {
			t.Errorf("cpu %q is %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "Mi", "64Mb", "-1", "+1", "1e3", "0x10", "1..2", ".5", "5.", "1 Mi", "99999999999Ti", "1_0", "m", "١"} {
		if got, err := memoryBytes(s); err == nil {
			t.Errorf("memory %q is read as %d", s, got)
		}
		if got, err := cpuMillis(s); err == nil {
			t.Errorf("cpu %q is read as %d", s, got)
		}
	}
	if _, err := count("1.5"); err == nil {
		t.Error("1.5 is read as a count")
	}
}

func fullAssignment() *redoubtv1.Assignment {
	grace, user := int64(3), int64(1000)
	limit := uint32(7)
	return &redoubtv1.Assignment{
		Uid: "u1", Namespace: "default", Workload: "web", Instance: "web-1", Fence: &redoubtv1.Fence{Index: 9, SiteEpoch: 1},
		Node: "n1", Site: "oslo", Runtime: "gvisor", Variant: "systrap",
		Class: redoubtv1.IsolationClass_ISOLATION_CLASS_SANDBOX, Floor: redoubtv1.IsolationClass_ISOLATION_CLASS_SANDBOX,
		Spec: &redoubtv1.Workload{
			Kind: "Job", RestartPolicy: "Never", Job: &redoubtv1.Job{BackoffLimit: &limit}, TerminationGracePeriodSeconds: &grace, Network: "none",
			Disconnect: &redoubtv1.Disconnect{Replace: "Safe", StopAfter: "90s"},
			Containers: []*redoubtv1.Container{{
				Name: "web", Image: "img:1", ImagePullPolicy: "Always", Command: []string{"/x"}, Args: []string{"a"}, WorkingDir: "/w",
				Env:       []*redoubtv1.EnvVar{{Name: "K", Value: "v=1"}},
				Ports:     []*redoubtv1.ContainerPort{{ContainerPort: 80, HostPort: 18080, HostIp: "127.0.0.1", Protocol: "UDP"}, {ContainerPort: 81}},
				Resources: &redoubtv1.Resources{Limits: map[string]string{"cpu": "500m", "memory": "64Mi", "pids": "99"}},
				SecurityContext: &redoubtv1.SecurityContext{RunAsUser: &user, ReadOnlyRootFilesystem: true,
					Capabilities: &redoubtv1.Capabilities{Add: []string{"NET_RAW"}, Drop: []string{"ALL"}}},
				VolumeMounts: []*redoubtv1.VolumeMount{{Name: "t", MountPath: "/t"}, {Name: "h", MountPath: "/h", ReadOnly: true}},
			}},
			Volumes: []*redoubtv1.Volume{
				{Name: "t", EmptyDir: &redoubtv1.EmptyDir{Medium: "Memory", SizeLimit: "1Mi"}},
				{Name: "h", HostPath: &redoubtv1.HostPath{Path: "/srv"}},
			},
		},
	}
}

func TestAssignmentIsReadWhole(t *testing.T) {
	got := assignment(fullAssignment())
	want := reconcile.Assignment{
		UID: "u1", Namespace: "default", Workload: "web", Instance: "web-1", Fence: store.Fence{Index: 9, Epoch: 1},
		Runtime: "gvisor", Variant: "systrap", Class: isolation.ClassSandbox, Floor: isolation.ClassSandbox,
		Job: true, Restart: reconcile.Never, BackoffLimit: 7, Grace: 3 * time.Second, StopAfter: 90 * time.Second, PullPolicy: "Always", NoNetwork: true,
		Ports: []reconcile.Port{{Container: 80, Host: 18080, HostIP: "127.0.0.1", Protocol: "udp"}, {Container: 81, Protocol: "tcp"}},
		Container: driver.Spec{
			Image: "img:1", Command: []string{"/x"}, Args: []string{"a"}, WorkingDir: "/w", Env: []string{"K=v=1"}, User: "1000", ReadOnlyRoot: true,
			AddCapabilities: []string{"CAP_NET_RAW"}, DropCapabilities: []string{"ALL"},
			Tmpfs:  []driver.Tmpfs{{Path: "/t", Size: 1 << 20}},
			Mounts: []driver.Mount{{HostPath: "/srv", Path: "/h", ReadOnly: true}},
			Limits: driver.Limits{CPUMillis: 500, Memory: 64 << 20, Pids: 99},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
}

func TestWhatIsLeftOutIsBounded(t *testing.T) {
	p := fullAssignment()
	p.Spec = &redoubtv1.Workload{Kind: "Service", Containers: []*redoubtv1.Container{{Image: "i"}}}
	a := assignment(p)
	if a.Invalid != "" || a.Container.Limits.Memory != defaultMemory || a.Container.Limits.Pids != defaultPids || a.Grace != defaultGrace || a.Restart != reconcile.Always || a.StopAfter != 0 {
		t.Errorf("defaults: %+v", a)
	}
	p.Spec.Containers[0].Resources = &redoubtv1.Resources{Requests: map[string]string{"memory": "32Mi"}}
	if a := assignment(p); a.Container.Limits.Memory != 32<<20 {
		t.Errorf("a request without a limit bounds at %d", a.Container.Limits.Memory)
	}
}

func TestWhatCannotBeRunSaysWhere(t *testing.T) {
	for want, edit := range map[string]func(*redoubtv1.Assignment){
		"containers":                    func(p *redoubtv1.Assignment) { p.Spec.Containers = nil },
		"kind":                          func(p *redoubtv1.Assignment) { p.Spec.Kind = "Cron" },
		"restartPolicy":                 func(p *redoubtv1.Assignment) { p.Spec.RestartPolicy = "Maybe" },
		"disconnect.stopAfter":          func(p *redoubtv1.Assignment) { p.Spec.Disconnect.StopAfter = "" },
		"disconnect.replace":            func(p *redoubtv1.Assignment) { p.Spec.Disconnect.Replace = "Soon" },
		"network":                       func(p *redoubtv1.Assignment) { p.Spec.Network = "host" },
		"resources.limits.memory":       func(p *redoubtv1.Assignment) { p.Spec.Containers[0].Resources.Limits["memory"] = "64Mb" },
		"resources.limits.gpu":          func(p *redoubtv1.Assignment) { p.Spec.Containers[0].Resources.Limits["gpu"] = "1" },
		"ports":                         func(p *redoubtv1.Assignment) { p.Spec.Containers[0].Ports[0].HostPort = 70000 },
		"volumeMounts":                  func(p *redoubtv1.Assignment) { p.Spec.Volumes = nil },
		"sizeLimit":                     func(p *redoubtv1.Assignment) { p.Spec.Volumes[0].EmptyDir.SizeLimit = "x" },
		"terminationGracePeriodSeconds": func(p *redoubtv1.Assignment) { n := int64(-1); p.Spec.TerminationGracePeriodSeconds = &n },
		"floor":                         func(p *redoubtv1.Assignment) { p.Floor = 99 },
	} {
		p := fullAssignment()
		edit(p)
		if a := assignment(p); !strings.Contains(a.Invalid, want) {
			t.Errorf("%s: Invalid is %q", want, a.Invalid)
		}
	}
}

// factsOf and reportOf are the other direction, written apart from the code
// that they check.
func factsOf(s *redoubtv1.InstanceStatus) store.Facts {
	f := store.Facts{UID: s.GetUid(), Fence: store.Fence{Index: s.GetFence().GetIndex(), Epoch: s.GetFence().GetSiteEpoch()},
		Sequence: s.GetSequence(), Phase: phases[s.GetPhase()], Message: s.GetMessage(), Pid: int(s.GetPid()), Runtime: s.GetRuntime(),
		ExitCode: int(s.GetExitCode()), Restarts: s.GetRestarts(), Address: s.GetAddress(), ImageDigest: s.GetImageDigest(), Kernel: s.GetKernel()}
	if s.GetStarted() != nil {
		f.Started = s.GetStarted().AsTime()
	}
	if s.GetFinished() != nil {
		f.Finished = s.GetFinished().AsTime()
	}
	if m := s.GetMeasured(); m != nil {
		v := measured(termsOf(m))
		f.Measured = &v
	}
	return f
}

func termsOf(m *redoubtv1.Terms) isolation.Terms {
	return isolation.Terms{VM: isolation.Level(m.GetVm()), Sandbox: isolation.Level(m.GetSandbox()), Surface: isolation.Surface{
		Syscalls: int(m.GetSurface().GetSyscalls()), SyscallsTotal: int(m.GetSurface().GetSyscallsTotal()),
		Devices: int(m.GetSurface().GetDevices()), Measured: m.GetSurface().GetMeasured(), Source: m.GetSurface().GetSource()}}
}

func TestStatusRoundTrip(t *testing.T) {
	for _, p := range phases {
		f := store.Facts{UID: "u", Fence: store.Fence{Index: 4, Epoch: 2}, Sequence: 8, Phase: p, Message: "m", Pid: 77, Runtime: "gvisor",
			Started: time.Unix(1e9, 5).UTC(), Finished: time.Unix(2e9, 0).UTC(), ExitCode: 137, Restarts: 3, Address: "10.88.0.2", ImageDigest: "sha256:1", Kernel: "4.4",
			Measured: &store.Measured{VM: 0.25, Sandbox: 0.5, Syscalls: 96, SyscallsTotal: 362, Devices: 2, Measured: true, Source: "s"}}
		s := statusProto(f)
		if s.GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_UNSPECIFIED {
			t.Errorf("%s has no word on the wire", p)
		}
		if got := factsOf(s); !reflect.DeepEqual(got, f) {
			t.Errorf("round trip: %+v, want %+v", got, f)
		}
	}
	if s := statusProto(store.Facts{UID: "u"}); s.GetStarted() != nil || s.GetMeasured() != nil {
		t.Error("what is unknown was told")
	}
}

func TestReportRoundTrip(t *testing.T) {
	want := isolation.Report{Node: "n1", Site: "oslo", Generation: 5, Labels: map[string]string{"a": "b"},
		Host: isolation.Host{Arch: "amd64", Kernel: "6.1", BootID: "b", CgroupV2: true, CPUMillis: 2000, MemoryBytes: 1 << 30,
			KVM: isolation.KVM{Verdict: isolation.KVMParavirtual, Reason: "r", Fix: "f", Rate: 3}},
		Findings: []isolation.Finding{{Runtime: "gvisor", Variant: "systrap", Class: isolation.ClassSandbox, State: isolation.StateVerified,
			Version: "1", Digest: "sha256:2", Terms: isolation.Terms{Sandbox: 0.5, Surface: isolation.Surface{Syscalls: 9, SyscallsTotal: 10, Devices: 1, Measured: true, Source: "x"}},
			Reason: "a", Fix: "b", OverheadMemory: 14 << 20, Age: time.Minute}}}
	b, err := proto.Marshal(reportProto(want))
	if err != nil {
		t.Fatal(err)
	}
	p := &redoubtv1.Report{}
	if err := proto.Unmarshal(b, p); err != nil {
		t.Fatal(err)
	}
	h := p.GetHost()
	got := isolation.Report{Node: isolation.NodeID(p.GetNode()), Site: isolation.SiteID(p.GetSite()), Generation: p.GetGeneration(), Labels: p.GetLabels(),
		Host: isolation.Host{Arch: h.GetArch(), Kernel: h.GetKernel(), BootID: h.GetBootId(), CgroupV2: h.GetCgroupV2(), CPUMillis: h.GetCpuMillis(), MemoryBytes: h.GetMemoryBytes(),
			KVM: isolation.KVM{Verdict: verdicts[h.GetKvm().GetVerdict()], Reason: h.GetKvm().GetReason(), Fix: h.GetKvm().GetFix(), Rate: h.GetKvm().GetRate()}}}
	for _, f := range p.GetFindings() {
		got.Findings = append(got.Findings, isolation.Finding{Runtime: isolation.Name(f.GetRuntime()), Variant: f.GetVariant(), Class: classes[f.GetClass()],
			State: states[f.GetState()], Version: f.GetVersion(), Digest: f.GetDigest(), Terms: termsOf(f.GetTerms()), Reason: f.GetReason(), Fix: f.GetFix(),
			OverheadMemory: f.GetOverheadMemoryBytes(), Age: f.GetAge().AsDuration()})
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
}
