package fake_test

import (
	"testing"
	"time"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/driver/conformance"
	"redoubt.dev/redoubt/agent/driver/fake"
)

func TestConformance(t *testing.T) {
	var host fake.Host
	defer host.Close()
	d := host.NewDriver("a")
	conformance.Run(t, conformance.Harness{
		Driver: d, Runtime: "gvisor", Variant: "systrap", Sandbox: true, Simulated: true,
		Image: "toolbox", Dir: t.TempDir(),
		Reopen:       func(*testing.T) driver.Driver { return host.NewDriver("a") },
		Other:        func(*testing.T) driver.Driver { return host.NewDriver("b") },
		KillBoundary: func(_ *testing.T, c driver.Container) { d.Kill(c.ID) },
		StopBoundary: func(_ *testing.T, c driver.Container) { d.Stick(c.ID) },
		KillShim:     func(_ *testing.T, id driver.ID) { d.KillShim(id) },
		StopShim:     func(_ *testing.T, id driver.ID) { d.Silence(id) },
		LoseTask:     func(_ *testing.T, id driver.ID) { d.Lose(id) },
		RestartRun: func(t *testing.T, whileDown func()) {
			d.SetDown(true)
			if _, err := d.List(t.Context()); err == nil {
				t.Error("a runtime that is away answers")
			}
			whileDown()
			time.Sleep(10 * time.Millisecond)
			d.SetDown(false)
		},
	})
}
