package fleet

import (
	"testing"

	"google.golang.org/protobuf/proto"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// FuzzQuantities: what is accepted is no less than nothing.
func FuzzQuantities(f *testing.F) {
	for _, s := range []string{"1", "500m", "0.1", "64Mi", "1e9", "9223372036854775807", "-1", "1Ki", "80-90", "90-80", "1.0000000001", "０"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseCPU(s); err == nil && n < 0 {
			t.Errorf("cpu %q is %d", s, n)
		}
		if n, err := ParseMemory(s); err == nil && n < 0 {
			t.Errorf("memory %q is %d", s, n)
		}
		_, _ = ParsePortRange(s)
	})
}

// FuzzWorkload: of whatever message the API is sent comes an error or a workload
// that survives its own conversion.
func FuzzWorkload(f *testing.F) {
	seed, _ := proto.Marshal(&redoubtv1.Workload{Name: "web", Kind: "Service", Containers: []*redoubtv1.Container{{Name: "c", Image: "toolbox"}}})
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var m redoubtv1.Workload
		if proto.Unmarshal(data, &m) != nil {
			return
		}
		_, _ = WorkloadFromProto(&m)
	})
}
