package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

// examples are those of verbs that bring none of their own, by their path
// without the program's name; a short form has that of the long one. Every verb
// has one: a test asks for it, and parses it.
var examples = map[string]string{
	"": `  sudo redoubt dev
  sudo redoubt run --prefer vm toolbox -- uname -a
  redoubt apply web.yml --wait
  redoubt get`,
	"agent":                     `  sudo redoubt agent --config /etc/redoubt/agent.yml`,
	"agent remove":              `  sudo redoubt agent remove --data-dir /var/lib/redoubt/agent`,
	"completion":                `  source <(redoubt completion bash)`,
	"completion bash":           `  source <(redoubt completion bash)`,
	"completion fish":           `  redoubt completion fish | source`,
	"completion zsh":            `  source <(redoubt completion zsh)`,
	"context":                   `  redoubt context list`,
	"context add":               `  redoubt context add prod admin.context`,
	"context list":              `  redoubt context list -o wide`,
	"context use":               `  redoubt context use prod`,
	"dev":                       `  sudo redoubt dev`,
	"doctor":                    `  sudo redoubt doctor`,
	"events":                    "  redoubt events -f\n  redoubt events --workload web --since 1h",
	"node":                      "  redoubt node list\n  redoubt node join-token --site oslo --out oslo.token",
	"node join-token":           "  redoubt node join-token --site oslo --out oslo.token\n  redoubt node join-token --role server --ttl 30m --out s2.token",
	"node list":                 `  redoubt node list --site oslo -o wide`,
	"node status":               `  redoubt node status oslo-1`,
	"operator":                  `  redoubt operator raft list`,
	"operator debug":            `  redoubt operator debug fleet-debug.tar.gz`,
	"operator raft":             `  redoubt operator raft list`,
	"operator raft list":        `  redoubt operator raft list`,
	"operator raft remove":      `  redoubt operator raft remove s3`,
	"operator snapshot":         `  redoubt operator snapshot save fleet.snapshot`,
	"operator snapshot inspect": `  redoubt operator snapshot inspect fleet.snapshot`,
	"operator snapshot restore": `  sudo redoubt operator snapshot restore fleet.snapshot --dry-run`,
	"operator snapshot save":    `  redoubt operator snapshot save fleet.snapshot`,
	"ps":                        "  redoubt ps\n  redoubt ps web --watch",
	"server":                    `  sudo redoubt server --config /etc/redoubt/server.yml`,
	"server admin-context":      `  sudo redoubt server admin-context admin.context`,
	"server init":               `  sudo redoubt server init --trust-domain fleet.example --address 10.0.0.1`,
	"server join":               `  sudo redoubt server join --address 10.0.0.2 --token-file s2.token`,
	"server recover":            `  sudo redoubt server recover --data-dir /var/lib/redoubt/server --dry-run`,
	"site":                      `  redoubt site list`,
	"site list":                 `  redoubt site list`,
	"version":                   `  redoubt version -o json`,
	"workload":                  "  redoubt workload apply web.yml\n  redoubt workload status web",
	"workload apply":            "  redoubt apply web.yml --wait --timeout 2m\n  redoubt apply -n shop web.yml db.yml",
	"workload cp":               "  redoubt cp web:/etc/app.conf .\n  redoubt cp ./site web:/srv",
	"workload egress":           "  redoubt workload egress web\n  redoubt workload egress web-2 -o json",
	"workload exec":             "  redoubt exec web -it -- sh\n  redoubt exec web-2 -- cat /etc/hostname",
	"workload explain":          "  redoubt explain web\n  redoubt explain web -o wide",
	"workload list":             "  redoubt get\n  redoubt get web --watch\n  redoubt get -o json",
	"workload logs":             "  redoubt logs web -f --tail 20\n  redoubt logs web-2",
	"workload plan":             `  redoubt plan web.yml`,
	"workload port-forward":     "  redoubt port-forward web 8080:80\n  redoubt port-forward web-2 5432",
	"workload run":              "  redoubt run --prefer vm toolbox -- uname -a\n  redoubt run -d --name box --keep -p 8080:80 toolbox -- sleep 600",
	"workload status":           `  redoubt workload status web`,
	"workload stop":             `  redoubt stop web --wait`,
}

// exemplify gives each verb of the tree its example, and its help the width of
// a terminal.
func exemplify(root *cobra.Command) {
	_ = walk(root, func(c *cobra.Command) error { // nothing in here fails
		c.Long = reflow(c.Long)
		path := strings.TrimSpace(strings.TrimPrefix(c.CommandPath(), root.Name()))
		if path == "get" {
			path = "list"
		}
		for _, p := range []string{path, "workload " + path} {
			if c.Example == "" {
				c.Example = examples[p]
			}
		}
		return nil
	})
}

// reflow wraps paragraphs at 80 columns; indented ones stay as they are.
func reflow(text string) string {
	paragraphs := strings.Split(text, "\n\n")
	for i, p := range paragraphs {
		if !strings.HasPrefix(p, " ") && !strings.Contains(p, "\n ") {
			paragraphs[i] = strings.Join(wrap(p, 80), "\n")
		}
	}
	return strings.Join(paragraphs, "\n\n")
}
