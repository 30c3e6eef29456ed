package control

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// TestADebugBundleHoldsNoSecret: of a fleet that has every kind of secret, after
// each of them was used, with everything logged that is ever logged.
func TestADebugBundleHoldsNoSecret(t *testing.T) {
	c, _, _ := placed(t, "s1")
	token := c.token(&redoubtv1.CreateJoinTokenRequest{})
	w := service("hidden", 1)
	w.Containers[0].Env = []*redoubtv1.EnvVar{{Name: "PASSWORD", Value: "correct-horse-battery"}}
	if _, err := c.fleet().ApplyWorkload(c.ctx(), &redoubtv1.ApplyWorkloadRequest{Workload: w}); err != nil {
		t.Fatal(err)
	}
	secrets := map[string][]byte{"token": []byte(token), "variable": []byte("correct-horse-battery")}
	secrets["token's second half"] = []byte(token[len(token)/2:])
	if err := filepath.Walk(c.servers["s1"].dir, func(path string, fi os.FileInfo, err error) error {
		if err != nil || fi.IsDir() || filepath.Ext(path) != ".pem" {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
			if strings.Contains(block.Type, "PRIVATE KEY") {
				secrets[path] = block.Bytes
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// The gossip key is in the state only.
	snapshot := state.NewStore()
	c.view("s1", snapshot)
	keys, ok := snapshot.Snapshot().SiteKeys(nil, "oslo")
	if !ok || len(secrets) < 4 {
		t.Fatalf("the fleet has no gossip key (%v), or too few secrets: %d", ok, len(secrets))
	}
	secrets["gossip key"] = keys.Keys[0]

	stream, err := c.fleet().CollectDebug(c.ctx(), &redoubtv1.CollectDebugRequest{})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for {
		m, err := stream.Recv()
		if err != nil {
			break
		}
		files[m.GetName()] = append(files[m.GetName()], m.GetData()...)
	}
	for name, want := range map[string]string{
		"info.json": `"server": "s1"`, "goroutines.txt": "goroutine profile: total", "heap.pprof": "", "metrics.txt": "redoubt_server_raft_leader 1",
		"raft.json": `"state": "Leader"`, "log.txt": "applied workload",
	} {
		if data, ok := files[name]; !ok || !bytes.Contains(data, []byte(want)) {
			t.Errorf("%s lacks %q:\n%.300s", name, want, data)
		}
	}
	for what, secret := range secrets {
		for _, form := range [][]byte{
			secret, []byte(hex.EncodeToString(secret)), []byte(base64.StdEncoding.EncodeToString(secret)), []byte(base64.RawURLEncoding.EncodeToString(secret)),
		} {
			for name, data := range files {
				if bytes.Contains(data, form) {
					t.Errorf("%s holds the %s", name, what)
				}
			}
		}
	}
}
