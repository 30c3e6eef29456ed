package install

import "testing"

// FuzzSettings: a configuration that an operator has edited.
func FuzzSettings(f *testing.F) {
	for _, s := range []string{"", "data-dir: /x\nserver: [a]\n", "a: {b: c}", "[", "a: *b", "a: &b [*b]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) { _, _ = parseSettings(data) })
}
