package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"redoubt.dev/redoubt/cmd/redoubt/cli"
	"redoubt.dev/redoubt/control/consensus"
)

// at runs a command as a user whose home is home.
func at(t *testing.T, home string, args ...string) (said string, code int) {
	t.Helper()
	var out syncBuffer
	code = cli.Run(t.Context(), cli.Env{
		Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &out,
		Getenv: func(name string) string { return map[string]string{"HOME": home}[name] },
	})
	return out.String(), code
}

func TestANewUserBeginsAFleetOnce(t *testing.T) {
	t.Parallel()
	home := filepath.Join(t.TempDir(), "home")
	dir := filepath.Join(t.TempDir(), "server")
	begin := func(more ...string) (string, int) {
		return at(t, home, append([]string{"server", "init", "--data-dir", dir, "--id", "s1", "--trust-domain", "fleet.test", "--address", "127.0.0.1"}, more...)...)
	}
	contexts := filepath.Join(home, ".config", "redoubt", "contexts")
	admin := filepath.Join(contexts, "admin")

	// A home that cannot be used begins nothing, and the repeat works.
	if err := os.WriteFile(home, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if said, code := begin(); code != 2 || !strings.Contains(said, "--admin-context FILE") {
		t.Errorf("no home: exit code %d: %s", code, said)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("half of a fleet was left behind")
	}
	if err := os.Remove(home); err != nil {
		t.Fatal(err)
	}
	// Neither does a context that cannot be written.
	if err := os.MkdirAll(filepath.Join(admin, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if said, code := begin(); code != 2 || !strings.Contains(said, "run the same again") {
		t.Errorf("a context in the way: exit code %d: %s", code, said)
	}
	if err := os.RemoveAll(home); err != nil {
		t.Fatal(err)
	}

	said, code := begin()
	if code != 0 || !strings.Contains(said, "Fleet fleet.test begins with server s1.") {
		t.Fatalf("an empty home: exit code %d: %s", code, said)
	}
	if info, err := os.Stat(contexts); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory of contexts: %v, %v", info, err)
	}
	if said, code := at(t, home, "context", "list", "-o", "name"); code != 0 || said != "admin\n" {
		t.Errorf("contexts: %q", said)
	}
	if said, code := begin(); code != 0 || strings.Contains(said, "begins") || !strings.Contains(said, "has begun before") {
		t.Errorf("repeated: exit code %d: %s", code, said)
	}

	// Its server is at work.
	raft := filepath.Join(dir, "raft")
	if err := os.Mkdir(raft, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := consensus.Exclude(raft)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	before, _ := os.ReadFile(admin)
	said, code = begin()
	if after, _ := os.ReadFile(admin); code != 0 || !strings.Contains(said, "nothing was changed") || strings.Contains(said, "Start it") || string(after) != string(before) {
		t.Errorf("beside its server: exit code %d: %s", code, said)
	}
	if said, code := begin("--api-address", "127.0.0.1:9"); code != 2 || !strings.Contains(said, "stop it") {
		t.Errorf("another address beside its server: exit code %d: %s", code, said)
	}
}
